"""The frame of an evaluation: images predicted by any number of processes, and scores written by one of them."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image

from transformers_glipv2.data.files import write_json, write_json_list
from transformers_glipv2.evaluation.shards import PredictionShards, predict_in_shards, weights_id
from transformers_glipv2.inference.batching import WINDOW
from transformers_glipv2.inference.detector import Detector

Failures = Mapping[Any, str]


def predict_images(
    args: argparse.Namespace,
    accelerator: Accelerator,
    keys: Sequence[int | str],
    load: Callable[[int], Any],
    predict: Callable[[list[Any]], list[list[dict[str, Any]]]],
    description: str,
    settings: Mapping[str, Any],
    output: Path | None = None,
    model: str | None = None,
    at_once: int | None = None,
) -> PredictionShards:
    """
    Predicts all images, over all processes; after an interruption it goes on where it was.

    Args:
        args (`argparse.Namespace`): flags of `arguments.add_prediction`, with "output" and "model".
        accelerator (`Accelerator`), keys, load, predict, description: as of `evaluation.shards`.
        settings (`Mapping`): what predictions depend on beside the weights, the precision and the size of batches.
        output (`Path`, *optional*), model (`str`, *optional*): instead of those of `args`.
        at_once (`int`, *optional*): images of one call of `predict`; by default a few batches.

    Returns:
        `PredictionShards`: whole, on every process.
    """
    shards = prediction_shards(args, accelerator, keys, settings, output, model)
    images = at_once or images_for_batches(getattr(args, "batch_size", 1), args.images_per_file)
    predict_in_shards(shards, load, predict, accelerator, images, args.num_workers, description)
    return shards


def images_for_batches(batch_size: int | str, images_per_file: int) -> int:
    """Images to hand to a [`Detector`], of which it makes batches of one size: those of a file, or four batches."""
    if batch_size == 1:
        return 1
    return images_per_file if isinstance(batch_size, str) else min(images_per_file, WINDOW * batch_size)


def prediction_shards(
    args: argparse.Namespace,
    accelerator: Accelerator,
    keys: Sequence[int | str],
    settings: Mapping[str, Any],
    output: Path | None = None,
    model: str | None = None,
) -> PredictionShards:
    """The files of [`predict_images`], whose arguments these are."""
    settings = {
        **settings,
        "batch_size": getattr(args, "batch_size", 1),
        "weights": weights_id(model or args.model),
        "mixed_precision": accelerator.mixed_precision,
    }
    return PredictionShards((output or args.output) / "predictions", keys, settings, args.images_per_file)


def write_predictions(output: Path, shards: PredictionShards, consequence: str) -> Failures:
    """
    Writes `predictions.json` and, where images could not be read, `failures.json`.

    Args:
        output (`Path`): folder.
        shards (`PredictionShards`): whole.
        consequence (`str`): what becomes of images that could not be read, such as "are left out".

    Returns:
        `Mapping`: image id -> what went wrong.

    Raises:
        ValueError: when no image could be read.
    """
    failures = shards.failures()
    if failures and len(failures) == len(shards.keys):
        first = next(iter(failures.values()))
        raise ValueError(f"none of the {len(failures)} images could be read; check --images. The first: {first}")
    write_json_list(output / "predictions.json", shards.predictions())
    if failures:
        write_json(output / "failures.json", failures)
        print(f"{len(failures)} images could not be read and {consequence}; see {output / 'failures.json'}")
    return failures


def score_predictions(
    args: argparse.Namespace,
    accelerator: Accelerator,
    score: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """
    Scores on the main process, writes `metrics.json`, and ends the run on all.

    Args:
        args (`argparse.Namespace`): with "output", a folder.
        accelerator (`Accelerator`).
        score (`Callable`): to the metrics; empty where there is nothing to score with.

    Returns:
        `dict`: the metrics; empty on other processes.
    """
    metrics: dict[str, Any] = {}
    if accelerator.is_main_process:
        metrics = score()
        if metrics:
            write_json(args.output / "metrics.json", metrics)
        else:
            print("There are no annotations to score with; predictions.json is ready for an evaluation server.")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return metrics


def generate_captions(
    detector: Detector, images: Sequence[Image.Image], num_beams: int, max_new_tokens: int, prefix: str = ""
) -> list[str]:
    """
    Captions of images, in the detector's batches.

    Args:
        detector (`Detector`): of a `GLIPv2ForConditionalGeneration`.
        images (`Sequence[PIL.Image.Image]`): RGB.
        num_beams (`int`), max_new_tokens (`int`): of beam search.
        prefix (`str`, *optional*): how captions begin, which is part of them.
    """
    generation = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "do_sample": False}
    respond = partial(detector.write_captions, generate_kwargs=generation)
    return list(detector.results(list(images), lambda index: prefix, detector.options, respond))


def write_scene_scores(args: argparse.Namespace, results: Mapping[str, Any], names: Sequence[str]) -> None:
    """
    Writes the scores on composite scenes to `--output`, where there is one, with the settings that they depend on.

    Args:
        args (`argparse.Namespace`): flags of `arguments.add_scenes`, with "output", a file.
        results (`Mapping`): JSON values.
        names (`Sequence[str]`): of the further flags to write down.
    """
    if args.output is not None:
        settings = {name: getattr(args, name) for name in (*names, "seed")}
        settings["more_backgrounds"] = args.background_folder is not None
        write_json(args.output, {"settings": settings, "results": results})
        print(f"Wrote {args.output}.")
