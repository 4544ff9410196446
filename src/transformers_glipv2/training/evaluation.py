"""Evaluation while a model trains: how examples are dealt to processes, and average precision of boxes and masks."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from tqdm.auto import tqdm

from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.formats.open import load_split
from transformers_glipv2.evaluation.coco import evaluate_coco, numbered, truth_entries
from transformers_glipv2.evaluation.confusion import best_threshold
from transformers_glipv2.evaluation.detector import coco_entries
from transformers_glipv2.inference.detector import Detector, encode_labels
from transformers_glipv2.inference.options import check_batch_size
from transformers_glipv2.prompts import clean_labels
from transformers_glipv2.training.data_file import DataFile, load_sources, resolved_path

REPORTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@100")

Item = TypeVar("Item")


# Processes -----------------------------------------------------------------------------------------------------------


def process_indices(count: int, process_index: int, num_processes: int) -> list[int]:
    """
    The indices of `count` examples that one process evaluates. Every process gets equally many, the last ones again
    from the front: forward passes of sharded models need all processes, and would wait for ever for one that has
    finished.
    """
    per_process = -(-count // num_processes)
    return [(process_index * per_process + position) % count for position in range(per_process)]


def own_examples(accelerator: Accelerator, examples: Sequence[Item], progress: bool) -> Iterator[tuple[int, Item]]:
    """Index and example of what this process evaluates, with a progress bar."""
    indices = process_indices(len(examples), accelerator.process_index, accelerator.num_processes)
    for index in tqdm(indices, desc="evaluation", disable=not progress, leave=False):
        yield index, examples[index]


def gather_in_order(results: Iterable[tuple[int, Item]]) -> list[Item]:
    """
    What all processes found, in the order of the examples; called by all of them. An example that two processes had
    counts once.

    Args:
        results: index of the example and result, of this process.
    """
    # Each process hands over one object: `gather_object` joins lists.
    everyone = {index: result for part in gather_object([dict(results)]) for index, result in part.items()}
    return [everyone[index] for index in sorted(everyone)]


def make_detector(
    accelerator: Accelerator,
    processor: Any,
    model: nn.Module,
    batch_size: int | str = "auto",
    methods: Sequence[str] = (),
    **options: Any,
) -> Detector:
    """
    A `Detector` of a prepared model.

    Args:
        accelerator (`Accelerator`), processor (`GLIPv2Processor`), model (`nn.Module`): prepared.
        batch_size (`int` or `"auto"`, *optional*): images of one size that go through the network together. A model
            that FSDP2 shards takes one at a time, as all processes must call it equally often.
        methods (`Sequence[str]`, *optional*): of the model, that are called beside `forward`.
        options: of the `Detector`.
    """
    methods = ("get_image_features", "get_text_features", *methods)
    own: Any = with_forward_methods(accelerator, model, *methods)
    if isinstance(own, FSDPModule):
        batch_size = 1
    return Detector(own, processor, batch_size=batch_size, progress=False, **options)


class AblatedImages:
    """
    The network of a `Detector` that sees no image: every pixel is the mean colour.

    Args:
        model (`nn.Module`): with images.
    """

    def __init__(self, model: Any):
        self.model = model

    def get_image_features(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> Any:
        """As the model's, of images without content."""
        return self.model.get_image_features(torch.zeros_like(pixel_values), pixel_mask)


def with_forward_methods(accelerator: Accelerator, model: nn.Module, *methods: str) -> nn.Module:
    """
    The model without the wrapper of DDP, on which these methods can be called. FSDP2 gathers the shards around
    `forward` alone unless it knows of the method.
    """
    model = accelerator.unwrap_model(model)
    if isinstance(model, FSDPModule):
        for method in methods:
            register_fsdp_forward_method(model, method)
    return model


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """
    Within the context every process holds all weights of a model sharded by FSDP2, so that none needs the others:
    captions differ in length, and so in their number of forward passes.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            # The root stays whole until the backward pass, as FSDP2 has it.
            module.set_reshard_after_forward(module is not model, recurse=False)


# Boxes and masks -----------------------------------------------------------------------------------------------------


class DetectionEvaluator:
    """
    Average precision of boxes, or of masks and boxes, on the images and classes of a COCO-format file, over all
    processes.

    Every image is asked for every class of the file, in the file's order and in as few prompts as hold them. What
    `load_coco` leaves out (images that cannot be read, boxes that are none) is left out of the scores too, and
    counted in `dataset.report`.

    Args:
        accelerator (`Accelerator`): deals the images to the processes.
        processor (`GLIPv2Processor`).
        data (`str`, `Path` or `ImageDataset`): a data set in any format, as `open_dataset` takes it; or a split of one
            (`data.split(name, for_scoring=True)`), read with masks where they are scored.
        split (`str`, *optional*): needed where a folder holds several.
        labels (`Sequence[str]`, *optional*): what the images are asked for, where that is more than the classes of the
            file; boxes of others do not count.
        max_samples (`int`, *optional*): only the first so many images of the file.
        image_folder (`str` or `Path`, *optional*), val_fraction (`float`, *optional*, defaults to 0.0),
            boxes_on (`str`, *optional*, defaults to `"auto"`), allow_outside_paths (`bool`, *optional*, defaults to
            `False`): as for `load_split`.
        size (`dict[str, int]`, *optional*): "shortest_edge" and "longest_edge" in pixels instead of the processor's.
        masks (`bool`, *optional*, defaults to `False`): score masks too. Objects without a mask are then left out of
            both scores, so that the two compare.
        progress (`bool`, *optional*, defaults to `True`): show bars.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`): see `make_detector`.

    Returns (when called with a prepared model in eval mode):
        `dict[str, float]`: AP, AP50, AP75, APs, APm, APl and AR@100 in percent; -1 where there is nothing to average.
            With `masks` these are of the masks, and those of the boxes are "box_AP" and so on. The same on every
            process. The truth is kept in `content`, as a COCO file has it, and the detections in `predictions`, as
            entries of a result file.

    Raises:
        FileNotFoundError, ValueError: as `load_coco`; when no object has a mask; and, when called, when no image can
            be read.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        processor: Any,
        data: str | Path | ImageDataset,
        split: str | None = None,
        max_samples: int | None = None,
        size: dict[str, int] | None = None,
        masks: bool = False,
        progress: bool = True,
        boxes_on: str = "auto",
        allow_outside_paths: bool = False,
        image_folder: str | Path | None = None,
        val_fraction: float = 0.0,
        labels: Sequence[str] | None = None,
        batch_size: int | str = "auto",
    ):
        check_batch_size(batch_size)
        if isinstance(data, ImageDataset):
            name, dataset = data.report.name, data
        else:
            name = str(data)
            dataset = load_split(
                data,
                image_folder,
                split=split,
                val_fraction=val_fraction,
                for_scoring=True,
                with_masks=masks,
                boxes_on=boxes_on,
                allow_outside_paths=allow_outside_paths,
            )
        self.category_ids, own_labels = dataset.category_ids, clean_labels(dataset.class_names or [])
        self.labels = own_labels if labels is None else list(labels)
        # `None` for labels that the file does not have.
        ids = dict(zip(own_labels, self.category_ids, strict=True))
        self.asked_ids = [ids.get(label) for label in self.labels]
        if masks and not any(_has_mask(record["objects"]) for record in dataset.records):
            raise ValueError(f"no object of {name} has a `segmentation`; score its boxes alone (masks=False).")
        self.dataset = dataset if max_samples is None else dataset.select(range(min(max_samples, len(dataset))))
        if not len(self.dataset):
            raise ValueError(f"{name} lists no images; there is nothing to evaluate on.")
        self.prompts = encode_labels(self.labels, processor.tokenizer, processor.max_tokens)
        self.accelerator = accelerator
        self.processor = processor
        self.size = size
        self.masks = masks
        self.batch_size = batch_size
        self.progress = progress and accelerator.is_main_process
        self.content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        self.predictions: list[dict[str, Any]] = []

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        methods = ["predict_masks"] if self.masks else []
        detector = make_detector(
            self.accelerator, self.processor, model, self.batch_size, methods, threshold=0.0, size=self.size
        )
        category_ids: dict[str, Any] = dict(zip(self.dataset.class_names or [], self.category_ids, strict=True))
        # What is known of images that wait for their results.
        waiting: deque[tuple[int, Any, Any]] = deque()

        def images_of_process() -> Iterator[Image.Image]:
            for index, example in own_examples(self.accelerator, _Read(self.dataset), self.progress):
                if example is None:
                    # Processes of a sharded model must call it equally often, also where an image cannot be read.
                    waiting.append((index, None, None))
                    yield Image.new("RGB", (32, 32))
                else:
                    waiting.append((index, example["image_id"], truth_entries(example, category_ids)))
                    yield example["image"]

        results = []
        with self.accelerator.autocast():
            for result in detector.run_prompts(images_of_process(), self.prompts, masks=self.masks):
                index, image_id, truth = waiting.popleft()
                if truth is not None:
                    entries = coco_entries(image_id, result, self.asked_ids)
                    entries = [entry for entry in entries if entry["category_id"] is not None]
                    results.append((index, (*truth, entries)))
        images, annotations, self.predictions = [], [], []
        for image, truths, found in gather_in_order(results):
            images.append(image)
            annotations += [entry for entry in truths if not self.masks or entry.get("segmentation")]
            self.predictions += found
        if not images:
            raise ValueError(f"no image of the evaluation can be read: {self.dataset.report.summary()}")
        categories = [{"id": category_id, "name": name} for name, category_id in category_ids.items()]
        self.content = content = {"images": images, "annotations": annotations, "categories": categories}
        if not self.masks:
            return _scores(content, self.predictions, "bbox")
        boxes = _scores(content, self.predictions, "bbox")
        masks = _scores(content, self.predictions, "segm")
        return masks | {f"box_{name}": value for name, value in boxes.items()}

    def best_threshold(self) -> float | None:
        """The score at which the F1 of the boxes of the last call is highest; `None` where there are none."""
        return best_threshold(self.content, self.predictions)


class _Read(Sequence):
    """A data set whose unreadable examples are `None`, in place of the next readable one."""

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset.read(index)


def _scores(content: dict[str, Any], predictions: list[dict[str, Any]], iou_type: str) -> dict[str, float]:
    scores = evaluate_coco(*numbered(content, predictions), iou_type, progress=False)
    return {name: 100 * scores[name] if scores[name] >= 0 else -1.0 for name in REPORTED}


def _has_mask(objects: dict[str, list[Any]]) -> bool:
    return any(mask is not None for mask in objects.get("segmentation", ()))


def make_evaluator(
    data: DataFile, accelerator: Accelerator, processor: Any, masks: bool = False
) -> DetectionEvaluator | None:
    """The evaluator that a data file asks for under `evaluation`; `None` where it asks for none."""
    if data.evaluation is None:
        return None
    options = {name: value for name, value in data.evaluation.items() if name != "path"}
    if "image_folder" in options:
        options["image_folder"] = resolved_path(data.folder, options["image_folder"])
    path = resolved_path(data.folder, data.evaluation["path"])
    return DetectionEvaluator(accelerator, processor, path, masks=masks, **options)


# Questions and captions ----------------------------------------------------------------------------------------------


def evaluation_examples(data: DataFile, kind: str) -> list[dict[str, Any]] | None:
    """
    The examples of a data file's `evaluation`, which here is a source with `max_samples`; `None` where there is none.

    Args:
        data (`DataFile`): `evaluation` is {kind, path, ...} as a source, and "max_samples", needed where the source is
            endless.
        kind (`str`): of the examples to keep, "vqa" or "caption".

    Returns:
        `list[dict]`: images included, so choose `max_samples` by the memory.

    Raises:
        ValueError: when the source is endless and `max_samples` is missing, or no example is left.
    """
    if data.evaluation is None:
        return None
    source = {name: value for name, value in data.evaluation.items() if name != "max_samples"}
    if "kind" not in source:
        raise ValueError(f"`evaluation` is {data.evaluation}; it needs the `kind` of its data, as a source does.")
    ((dataset,), _), count = load_sources(DataFile(data.folder, [source])), data.evaluation.get("max_samples")
    if count is None and not hasattr(dataset, "__len__"):
        raise ValueError("the `evaluation` of the data file is endless; give it `max_samples`.")
    count = len(dataset) if count is None else min(count, len(dataset)) if hasattr(dataset, "__len__") else count
    examples = [example for example in map(dataset.__getitem__, range(count)) if example["kind"] == kind]
    if not examples:
        raise ValueError(f"none of the {count} examples of `evaluation` is of kind {kind!r}.")
    return examples
