"""
Serves a detector over HTTP, with requests that arrive together in one forward pass.

    python examples/serve.py --model hub_upload/glipv2-nano --port 8000
    curl -F image=@docs/images/coffee.jpg -F labels=cup,spoon -F threshold=0.3 http://127.0.0.1:8000/detect
    curl http://127.0.0.1:8000/health

`/docs` describes both. Needs `pip install "transformers-glipv2[serve]"`. There is no authentication and no encryption:
put a proxy in front of it before others can reach it.
"""

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from transformers_glipv2 import Detector, GLIPv2ForObjectDetection
from transformers_glipv2.cli.arguments import (
    NANO,
    ScriptParser,
    add_backend,
    add_device,
    add_model,
    check_paths,
    non_negative_float,
    non_negative_int,
    positive_int,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.images.image_io import image_size, open_image
from transformers_glipv2.inference.batching import PreparedImage, prepare_image

logger = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Settings:
    """
    What a server allows.

    Attributes:
        batch_size (`int`): requests in one forward pass at most.
        max_wait (`float`): seconds that the first of a batch waits for others.
        max_queue (`int`): requests at a time, from upload to answer; more are told to come back (503).
        max_bytes (`int`): of a request.
        max_pixels (`int`): of an image.
        max_labels (`int`): of a request.
        max_label_length (`int`): characters of a label.
    """

    batch_size: int = 8
    max_wait: float = 0.005
    max_queue: int = 64
    max_bytes: int = 10_000_000
    max_pixels: int = 40_000_000
    max_labels: int = 100
    max_label_length: int = 100


class FoundObject(BaseModel):
    """A box x1, y1, x2, y2 in pixels of the image, with what it holds."""

    label: str
    score: float
    box: list[float]


class Detections(BaseModel):
    """The answer of `/detect`; objects in falling order of their scores."""

    width: int
    height: int
    objects: list[FoundObject]


# Batches -------------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """An image that waits for its boxes."""

    image: PreparedImage
    threshold: float
    result: asyncio.Future = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class BatchQueue:
    """
    Collects jobs until there are `batch_size`, or the first has waited `max_wait` seconds, and computes them at once.
    While a batch is computed, the next one gathers.

    Args:
        compute: jobs to the result of each; called in a thread.
        batch_size, max_wait: as in [`Settings`].
    """

    def __init__(self, compute: Callable[[list[Job]], list[Any]], batch_size: int, max_wait: float):
        self.compute, self.batch_size, self.max_wait = compute, batch_size, max_wait
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.task = asyncio.create_task(self.work())

    async def submit(self, job: Job) -> Any:
        """Its result; raises HTTPException where its batch failed."""
        self.jobs.put_nowait(job)
        return await job.result

    async def work(self) -> None:
        """Computes one batch after the other, for ever."""
        while True:
            jobs = [await self.jobs.get()]
            with suppress(TimeoutError):
                async with asyncio.timeout(self.max_wait):
                    while len(jobs) < self.batch_size:
                        jobs.append(await self.jobs.get())
            try:
                results = await asyncio.to_thread(self.compute, jobs)
            except Exception:
                logger.exception("A batch of %d images failed.", len(jobs))
                for job in jobs:
                    if not job.result.cancelled():
                        job.result.set_exception(HTTPException(500, "No boxes could be computed; see the log."))
                continue
            for job, result in zip(jobs, results, strict=True):
                if not job.result.cancelled():
                    job.result.set_result(result)

    async def close(self) -> None:
        """Ends the task; nothing may wait any more."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


# The application -----------------------------------------------------------------------------------------------------


def create_app(detector: Detector, settings: Settings | None = None) -> FastAPI:
    """
    The application: `POST /detect` and `GET /health`.

    Args:
        detector: what finds boxes.
        settings: limits and batches.
    """
    limits = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.requests = 0
        # Two images at a time are decoded, so that memory is bounded.
        app.state.decoders = ThreadPoolExecutor(2)
        app.state.queue = BatchQueue(lambda jobs: find_boxes(detector, jobs), limits.batch_size, limits.max_wait)
        yield
        # uvicorn has waited for the requests.
        await app.state.queue.close()
        app.state.decoders.shutdown()

    app = FastAPI(title="GLIPv2", lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        """What is wrong with a form, in one sentence."""
        wrong = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return JSONResponse({"detail": "; ".join(wrong)}, 422)

    @app.middleware("http")
    async def guard(request: Request, respond: Callable) -> Any:
        """Refuses what is too large or too much before it is read."""
        if request.method != "POST":
            return await respond(request)
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return JSONResponse({"detail": "The request needs a Content-Length."}, 411)
        if int(length) > limits.max_bytes:
            detail = f"The request has {length} bytes; at most {limits.max_bytes} are taken."
            return JSONResponse({"detail": detail}, 413)
        if app.state.requests >= limits.max_queue:
            detail = f"{app.state.requests} requests are waiting; try again in a moment."
            return JSONResponse({"detail": detail}, 503, {"Retry-After": "1"})
        app.state.requests += 1
        try:
            return await respond(request)
        finally:
            app.state.requests -= 1

    @app.post("/detect")
    async def detect(
        image: UploadFile,
        labels: Annotated[list[str], Form(description="Names to look for, by comma or repeated.")],
        threshold: Annotated[float, Form(ge=0, le=1, description="Lowest score of a box.")] = 0.3,
    ) -> Detections:
        """Finds objects of an image by their names."""
        content = await image.read()
        loop = asyncio.get_running_loop()
        try:
            names = check_labels(labels, limits)
            prepared = await loop.run_in_executor(app.state.decoders, prepare, detector, content, names, limits)
        except (OSError, ValueError) as error:
            raise HTTPException(422, str(error)) from error
        found = await app.state.queue.submit(Job(prepared, threshold))
        columns = (found[name].tolist() for name in ("scores", "labels", "boxes"))
        objects = [
            FoundObject(label=names[label], score=score, box=box)
            for score, label, box in zip(*columns, strict=True)
            if score >= threshold
        ]
        height, width = prepared.target_size
        return Detections(width=width, height=height, objects=objects)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether requests are answered, and how many are waiting."""
        if app.state.queue.task.done():
            raise HTTPException(503, "No batches are computed any more; start the server again.")
        return {"status": "ok", "requests": app.state.requests}

    return app


def check_labels(values: list[str], limits: Settings) -> list[str]:
    """
    Labels by comma or repeated.

    Raises:
        ValueError: for none, an empty one, too many, or one that is too long.
    """
    labels = [label.strip() for value in values for label in value.split(",")]
    if not all(labels):
        raise ValueError("labels: one is empty; write them as cup,spoon.")
    if len(labels) > limits.max_labels:
        raise ValueError(f"labels: {len(labels)} are given; at most {limits.max_labels} are taken.")
    longest = max(labels, key=len)
    if len(longest) > limits.max_label_length:
        raise ValueError(
            f"labels: {longest[:20]!r}... has {len(longest)} characters; at most {limits.max_label_length} are taken."
        )
    return labels


def prepare(detector: Detector, content: bytes, labels: list[str], limits: Settings) -> PreparedImage:
    """
    An image as the model takes it, with the prompts of its labels.

    Raises:
        OSError, ValueError: for content that is no image, one that is too large, or labels that do not fit.
    """
    prompts = detector.encode(labels)
    # The head of the file says how large it is.
    width, height = image_size(content)
    if width * height > limits.max_pixels:
        raise ValueError(f"image: it has {width} x {height} pixels; at most {limits.max_pixels} in all are taken.")
    return prepare_image(detector.processor, open_image(content, allow_urls=False), asked=prompts)


def find_boxes(detector: Detector, jobs: list[Job]) -> list[dict[str, Any]]:
    """The boxes of several requests; those of one size share forward passes."""
    # Suppression starts with the highest scores, so the lowest threshold adds boxes and changes none.
    options = replace(detector.options, threshold=min(job.threshold for job in jobs))
    return detector.respond_all(
        [job.image for job in jobs], lambda features, batch: detector.find(features, batch, options)
    )


# The script ----------------------------------------------------------------------------------------------------------


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, default=NANO)
    add_device(parser)
    add_backend(parser)
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all (default: 127.0.0.1)")
    add("--port", type=non_negative_int, default=8000, help="0 takes a free one (default: 8000)")
    add("--threads", type=positive_int, help="CPU threads of the network (default: PyTorch's)")
    add("--batch_size", type=positive_int, default=8, help="requests in one forward pass at most (default: 8)")
    add("--max_wait", type=non_negative_float, default=5, help="milliseconds to wait for more (default: 5)")
    add("--max_queue", type=positive_int, default=64, help="requests at a time; more are refused (default: 64)")
    add("--max_megabytes", type=positive_int, default=10, help="of a request (default: 10)")
    add("--max_megapixels", type=positive_int, default=40, help="of an image (default: 40)")
    add("--max_labels", type=positive_int, default=100, help="of a request (default: 100)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = check_paths(parse_args(arguments))
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cpu" if args.backend == "onnx" else args.device
    model, processor = load_checkpoint(GLIPv2ForObjectDetection, args.model, device)
    detector = Detector(model, processor, args.backend, progress=False)
    settings = Settings(
        batch_size=args.batch_size,
        max_wait=args.max_wait / 1000,
        max_queue=args.max_queue,
        max_bytes=args.max_megabytes * 1_000_000,
        max_pixels=args.max_megapixels * 1_000_000,
        max_labels=args.max_labels,
    )
    uvicorn.run(create_app(detector, settings), host=args.host, port=args.port)


if __name__ == "__main__":
    run(main)
