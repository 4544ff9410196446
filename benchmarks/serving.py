"""
Loads `examples/serve.py` on loopback: requests a second and how long they take, with batches and without.

    python benchmarks/serving.py --model hub_upload/glipv2-nano --image docs/images/astronaut.jpg --threads 1

For each kind of server, one after the other in a process of its own, so many clients as `--concurrency` says ask in
turn: each sends its next request once it has the answer. Clients and server share the machine. Needs
`pip install "transformers-glipv2[serve]"`.
"""

import argparse
import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from transformers_glipv2.cli.arguments import (
    ScriptParser,
    add_backend,
    add_device,
    add_image,
    add_model,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.errors import run

SERVER = Path(__file__).parents[1] / "examples" / "serve.py"
WARM_UP = 3


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser)
    add_image(parser, help="photograph to send")
    add("--labels", default="person,dog,car,chair,bottle", help="by comma (default: five)")
    add("--concurrency", type=positive_int, nargs="+", default=[1, 8, 32], help="clients (default: 1 8 32)")
    add("--requests", type=positive_int, default=160, help="of each measurement (default: 160)")
    add("--batch_size", type=positive_int, default=8, help="of the server with batches (default: 8)")
    add("--threads", type=positive_int, default=2, help="CPU threads of the server (default: 2)")
    add_backend(parser)
    add_device(parser, default="cpu")
    return parser.parse_args(arguments)


@contextmanager
def serving(args: argparse.Namespace, batch_size: int) -> Iterator[str]:
    """The address of a server in a process of its own."""
    settings = {
        "--model": args.model,
        "--device": args.device,
        "--backend": args.backend,
        "--threads": args.threads,
        "--batch_size": batch_size,
        "--max_queue": max(args.concurrency) + 1,
        "--port": 0,
    }
    command = [sys.executable, *map(str, (SERVER, *itertools.chain(*settings.items())))]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        said = ""
        for line in server.stderr:
            said += line
            if "running on http://" in line:
                break
        else:
            raise RuntimeError(f"The server did not start:\n{said}")
        yield "http://" + line.split("http://")[1].split()[0]
    finally:
        server.terminate()
        server.communicate()


async def load(url: str, content: bytes, labels: str, concurrency: int, requests: int) -> dict[str, float]:
    """Requests a second, and percentiles of their milliseconds."""
    seconds: list[float] = []
    counts = iter(range(requests))
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def ask() -> None:
            answer = await client.post("/detect", files={"image": content}, data={"labels": labels})
            answer.raise_for_status()

        async def ask_in_turn() -> None:
            for _ in counts:
                start = time.perf_counter()
                await ask()
                seconds.append(time.perf_counter() - start)

        for _ in range(WARM_UP):
            await asyncio.gather(*(ask() for _ in range(concurrency)))
        start = time.perf_counter()
        await asyncio.gather(*(ask_in_turn() for _ in range(concurrency)))
        took = time.perf_counter() - start
    percentiles = {f"p{percent}": 1e3 * float(np.percentile(seconds, percent)) for percent in (50, 95, 99)}
    return {"requests_per_second": requests / took, **percentiles}


def main(arguments: list[str] | None = None) -> dict[tuple[int, int], dict[str, Any]]:
    args = check_paths(parse_args(arguments))
    content = Path(args.image).read_bytes()
    results: dict[tuple[int, int], dict[str, Any]] = {}
    with tqdm(total=2 * len(args.concurrency), unit="measurement") as bar:
        for batch_size in (1, args.batch_size):
            with serving(args, batch_size) as url:
                for concurrency in args.concurrency:
                    found = asyncio.run(load(url, content, args.labels, concurrency, args.requests))
                    results[batch_size, concurrency] = found
                    bar.update()
    print("| clients | batches of at most | requests a second | p50 ms | p95 ms | p99 ms |")
    print("|---:|---:|---:|---:|---:|---:|")
    for batch_size, concurrency in sorted(results, key=lambda key: key[::-1]):
        row = results[batch_size, concurrency]
        times = " | ".join(f"{row[name]:.0f}" for name in ("p50", "p95", "p99"))
        print(f"| {concurrency} | {batch_size} | {row['requests_per_second']:.1f} | {times} |")
    return results


if __name__ == "__main__":
    run(main)
