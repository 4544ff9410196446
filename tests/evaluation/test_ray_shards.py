"""Predictions by the actors of a local Ray of two workers."""

import json

import pytest

from transformers_glipv2.evaluation.ray_shards import import_ray, predict_with_ray
from transformers_glipv2.evaluation.shards import PredictionShards, evaluation_accelerator, predict_in_shards

ray = pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module", autouse=True)
def two_workers():
    import_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Worker:
    """Squares numbers, of which some cannot be read; a class, so that actors can be given what it notes."""

    def __init__(self, log, unreadable=()):
        self.log = log
        self.unreadable = unreadable

    def __call__(self):
        return self.load, self.predict

    def load(self, position):
        if position in self.unreadable:
            raise OSError("broken file")
        return position

    def predict(self, items):
        with open(self.log, "a") as file:
            file.write(f"{json.dumps(items)}\n")
        return [[{"square": item**2}] for item in items]


def make_shards(folder, count=10):
    return PredictionShards(folder, [f"image {index}" for index in range(count)], {"model": "m"}, size=4)


def test_gives_what_plain_prediction_gives_and_goes_on(tmp_path):
    worker = Worker(tmp_path / "log", unreadable=(5,))
    plain, ray_made = make_shards(tmp_path / "plain"), make_shards(tmp_path / "ray")
    predict_in_shards(plain, worker.load, worker.predict, evaluation_accelerator(), batch_size=3)
    batches = sorted((tmp_path / "log").read_text().splitlines())
    (tmp_path / "log").unlink()
    predict_with_ray(ray_made, worker.load, worker, batch_size=3, actors=2)
    assert sorted((tmp_path / "log").read_text().splitlines()) == batches
    assert list(ray_made.entries()) == list(plain.entries())
    assert ray_made.failures() == {"image 5": "OSError: broken file"}

    # A lost file and an image that can be read now: two of three blocks, by either way of predicting.
    ray_made.path(ray_made.blocks[2]).unlink()
    (tmp_path / "log").unlink()
    worker = Worker(tmp_path / "log")
    predict_with_ray(ray_made, worker.load, worker, batch_size=3, actors=2)
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["[4, 5, 6]", "[7]", "[8, 9]"]
    assert [entry["square"] for entry in ray_made.predictions()] == [index**2 for index in range(10)]
    (tmp_path / "log").unlink()
    predict_with_ray(ray_made, worker.load, worker, batch_size=3)
    assert not (tmp_path / "log").exists()


def test_an_error_of_a_worker_ends_the_run(tmp_path):
    class Failing(Worker):
        def predict(self, items):
            raise RuntimeError("no memory")

    with pytest.raises(Exception, match="no memory"):
        predict_with_ray(make_shards(tmp_path / "failing"), Worker("").load, Failing(tmp_path / "log"))
