"""The predictions of `evaluation/shards.py`, made by the actors of a Ray cluster."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

from tqdm.auto import tqdm

from transformers_glipv2.evaluation.shards import (
    LoadedImages,
    PredictionShards,
    blocks_to_predict,
    predicted_entries,
)

Load = Callable[[int], Any]
Predict = Callable[[list[Any]], list[list[dict[str, Any]]]]


def predict_with_ray(
    shards: PredictionShards,
    load: Load,
    make_worker: Callable[[], tuple[Load, Predict]],
    batch_size: int = 1,
    actors: int = 1,
    gpus_per_actor: float = 0,
    loading_threads: int = 2,
    description: str = "predicting",
) -> None:
    """
    Predict every image that has no prediction yet, with actors of Ray Data; returns when all are done.

    The files are those of [`predict_in_shards`], so either goes on where the other was interrupted. Every machine of
    the cluster must see the images, the model and the folder of predictions under the same paths.

    Args:
        shards (`PredictionShards`): where predictions go; one file is one task.
        load (`Callable[[int], Any]`): opens an image; finds out whether one that could not be read now can.
        make_worker (`Callable`): called once in each actor; gives `load` and `predict` as of [`predict_in_shards`].
        batch_size (`int`, *optional*, defaults to 1): images of one call of `predict`.
        actors (`int`, *optional*, defaults to 1): each holds a model.
        gpus_per_actor (`float`, *optional*, defaults to 0): 0 runs on CPUs; 0.5 puts two actors on a GPU.
        loading_threads (`int`, *optional*, defaults to 2): of an actor, which open images while it predicts.
        description (`str`, *optional*): for the progress bar.

    Raises:
        ImportError: when Ray is not installed.
    """
    ray = import_ray()
    remaining = blocks_to_predict(shards, LoadedImages(load))
    if not remaining:
        return
    if not ray.is_initialized():
        # A running cluster where there is one (`ray start`, `RAY_ADDRESS`), else this machine.
        ray.init(log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = [{"start": start, "stop": stop} for start, stop in remaining]
    tasks = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
        _BlockPredictor,
        fn_constructor_args=(shards, make_worker, batch_size, loading_threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(blocks))),
        num_gpus=gpus_per_actor,
    )
    total = sum(stop - start for start, stop in remaining)
    with tqdm(total=total, desc=description, unit=" images") as bar:
        for done in tasks.iter_rows():
            bar.update(done["stop"] - done["start"])


def import_ray() -> ModuleType:
    """Ray with its `data`; raises ImportError with the remedy where it is missing."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('`--engine ray` needs Ray: pip install "transformers-glipv2[ray]".') from error
    return ray


class _BlockPredictor:
    """Predicts blocks and writes their files; Ray makes one in each actor."""

    def __init__(
        self,
        shards: PredictionShards,
        make_worker: Callable[[], tuple[Load, Predict]],
        batch_size: int,
        loading_threads: int,
    ):
        load, self.predict = make_worker()
        self.shards = shards
        self.loaded = LoadedImages(load)
        self.batch_size = batch_size
        self.threads = ThreadPoolExecutor(loading_threads)

    def __call__(self, blocks: dict[str, Any]) -> dict[str, Any]:
        for start, stop in zip(blocks["start"].tolist(), blocks["stop"].tolist(), strict=True):
            images = self.threads.map(self.loaded.__getitem__, range(start, stop))
            entries: list[dict[str, Any]] = []
            for first in range(start, stop, self.batch_size):
                batch = [next(images) for _ in range(first, min(first + self.batch_size, stop))]
                entries += predicted_entries(self.shards, batch, self.predict)
            self.shards.write((start, stop), entries)
        return blocks
