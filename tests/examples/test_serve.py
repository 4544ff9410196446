"""examples/serve.py on loopback."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.scripts import load_script
from tests.tiny_detector import natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import Detector

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
SHAPES = [(90, 130), (130, 90), (90, 130), (64, 64)]
ASKED = [("person,dining table", 0.3), ("person", 0.1), ("cup, spoon", 0.2)]


@pytest.fixture(scope="module")
def script():
    return load_script("examples/serve.py")


@pytest.fixture
def detector() -> Detector:
    return Detector(tiny_detector(), tiny_processor(), progress=False)


class Server(uvicorn.Server):
    """Started in a thread, where it cannot catch signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def served(app) -> Iterator[tuple[httpx.Client, Server]]:
    """A client of an application, and its server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=60) as client:
                yield client, server
        finally:
            server.should_exit = True
            thread.join()


def encoded(image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def ask(client: httpx.Client, content: bytes, **form) -> httpx.Response:
    return client.post("/detect", files={"image": content}, data=form)


def hold(detector: Detector, monkeypatch) -> tuple[threading.Event, list[int]]:
    """Until the event is set no batch is computed; sizes of batches are noted."""
    go, sizes, respond_all = threading.Event(), [], detector.respond_all

    def respond(prepared, *args):
        sizes.append(len(prepared))
        assert go.wait(60)
        return respond_all(prepared, *args)

    monkeypatch.setattr(detector, "respond_all", respond)
    return go, sizes


def wait_for(requests: int, client: httpx.Client) -> None:
    """Returns once so many requests are in the server."""
    for _ in range(1000):
        if client.get("/health").json()["requests"] == requests:
            return
        time.sleep(0.01)
    pytest.fail(f"there are never {requests} requests")


def test_answers_are_those_of_the_detector(script, detector):
    image = natural_image()
    with served(script.create_app(detector)) as (client, _):
        assert client.get("/health").json() == {"status": "ok", "requests": 0}
        for labels in ("person,dining table", ["person", "dining table"]):
            answer = ask(client, encoded(image), labels=labels, threshold=0.2)
            assert answer.status_code == 200
            found = answer.json()
            (expected,) = detector.detect(image, ["person", "dining table"], threshold=0.2)
            assert (found["width"], found["height"]) == image.size
            assert [one["label"] for one in found["objects"]] == expected["text_labels"]
            assert [one["score"] for one in found["objects"]] == pytest.approx(expected["scores"].tolist(), abs=1e-6)
            boxes = [value for one in found["objects"] for value in one["box"]]
            assert boxes == pytest.approx(expected["boxes"].flatten().tolist(), abs=1e-3)
        assert len(found["objects"]) > 3
        # The threshold is 0.3 where none is given.
        assert all(one["score"] >= 0.3 for one in ask(client, encoded(image), labels="person").json()["objects"])


def test_requests_at_once_are_answered_as_one_by_one(script, detector, monkeypatch):
    """Images of several sizes, each with its own labels and threshold, in shared batches."""
    asked = [(encoded(natural_image(*shape)), *one) for shape in SHAPES for one in ASKED]
    settings = script.Settings(batch_size=5, max_wait=0.01)
    with served(script.create_app(detector, settings)) as (client, _):
        alone = [ask(client, image, labels=labels, threshold=low).json() for image, labels, low in asked]
        go, sizes = hold(detector, monkeypatch)
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = [pool.submit(ask, client, image, labels=labels, threshold=low) for image, labels, low in asked]
            wait_for(len(asked), client)
            go.set()
            together = [answer.result().json() for answer in answers]
    assert sum(sizes) == len(asked) and max(sizes) == 5
    for one, other in zip(alone, together, strict=True):
        assert [found["label"] for found in one["objects"]] == [found["label"] for found in other["objects"]]
        for found, same in zip(one["objects"], other["objects"], strict=True):
            assert found["score"] == pytest.approx(same["score"], abs=1e-5)
            assert found["box"] == pytest.approx(same["box"], abs=1e-2)
    assert sum(len(one["objects"]) for one in alone) > 10


def test_wrong_requests_are_refused_with_a_sentence(script, detector):
    limits = script.Settings(max_bytes=100_000, max_pixels=200 * 200, max_labels=3, max_label_length=20)
    image = encoded(natural_image())
    wrong = [
        ({"labels": "cat"}, b"no image", 422, "is not an image"),
        ({"labels": "cat"}, b"", 422, "image"),
        ({"labels": "cat"}, image[: len(image) // 2], 422, "truncated"),
        ({"labels": "cat"}, encoded(natural_image(201, 200)), 422, "image: it has 200 x 201 pixels; at most 40000"),
        ({"labels": "cat"}, bytes(100_001), 413, "at most 100000 are taken"),
        ({}, image, 422, "labels: Field required"),
        ({"labels": ""}, image, 422, "labels"),
        ({"labels": "cat,,dog"}, image, 422, "labels: one is empty"),
        ({"labels": "a,b,c,d"}, image, 422, "labels: 4 are given; at most 3"),
        ({"labels": "x" * 21}, image, 422, "21 characters; at most 20"),
        ({"labels": "cat", "threshold": "2"}, image, 422, "threshold: Input should be less than or equal to 1"),
        ({"labels": "cat", "threshold": "nan"}, image, 422, "threshold"),
        ({"labels": "cat", "threshold": "high"}, image, 422, "threshold: Input should be a valid number"),
    ]
    with served(script.create_app(detector, limits)) as (client, _):
        for form, content, status, sentence in wrong:
            answer = ask(client, content, **form)
            assert (answer.status_code, sentence in answer.json()["detail"]) == (status, True), answer.text
        answer = client.post("/detect", data={"labels": "cat"})
        assert (answer.status_code, answer.json()["detail"]) == (422, "image: Field required")
        answer = client.post("/detect", content=iter([b"in", b"parts"]))
        assert (answer.status_code, answer.json()["detail"]) == (411, "The request needs a Content-Length.")
        # What was refused is no longer counted.
        assert ask(client, image, labels="cat").status_code == 200
        assert client.get("/health").json()["requests"] == 0


def test_more_requests_than_the_queue_holds_are_told_to_come_back(script, detector, monkeypatch):
    image = encoded(natural_image())
    go, _ = hold(detector, monkeypatch)
    with (
        served(script.create_app(detector, script.Settings(max_queue=2))) as (client, _),
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [pool.submit(ask, client, image, labels="cat") for _ in range(2)]
        wait_for(2, client)
        refused = ask(client, image, labels="cat")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["detail"] == "2 requests are waiting; try again in a moment."
        go.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
        assert ask(client, image, labels="cat").status_code == 200


def test_a_fault_of_the_network_ends_its_batch_alone(script, detector, monkeypatch):
    image = encoded(natural_image())
    with served(script.create_app(detector)) as (client, _):
        with monkeypatch.context() as patch:
            patch.setattr(detector, "respond_all", lambda *args: 1 / 0)
            answer = ask(client, image, labels="cat")
            assert (answer.status_code, answer.json()["detail"]) == (500, "No boxes could be computed; see the log.")
        assert ask(client, image, labels="cat").status_code == 200
        assert client.get("/health").json() == {"status": "ok", "requests": 0}


def test_a_server_that_stops_answers_what_it_took(script, detector, monkeypatch):
    image = encoded(natural_image())
    go, sizes = hold(detector, monkeypatch)
    settings = script.Settings(batch_size=1)
    with ThreadPoolExecutor(3) as pool, served(script.create_app(detector, settings)) as (client, server):
        waiting = [pool.submit(ask, client, image, labels="cat") for _ in range(3)]
        wait_for(3, client)
        server.should_exit = True
        time.sleep(0.2)
        go.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
    assert sizes == [1, 1, 1]


def test_the_options_become_settings(script):
    args = script.parse_args(["--max_queue", "3", "--backend", "onnx"])
    assert (args.max_queue, args.backend, args.batch_size, args.port) == (3, "onnx", 8, 8000)
    with pytest.raises(SystemExit):
        script.parse_args(["--batch_size", "0"])
