"""Average precision of boxes and masks on a COCO-format folder while a model trains."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from tqdm.auto import tqdm

from transformers_glipv2.data.dataset import open_image
from transformers_glipv2.data.formats.coco import ImageFinder, find_annotation_file, used_categories
from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.detections import read_annotations
from transformers_glipv2.evaluation.detector import Detector, coco_entries, open_annotated_image
from transformers_glipv2.inference.detector import encode_labels
from transformers_glipv2.training.data_file import DataFile, clean_name

REPORTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@100")


class DetectionEvaluator:
    """
    Scores a model on the images and classes of a COCO-format file, over all processes.

    Every image is asked for every class of the file, in the file's order and in as few prompts as hold them.

    Args:
        accelerator (`Accelerator`): shares out the images.
        processor (`GLIPv2Processor`).
        annotation_file (`str` or `Path`): a COCO-format json or folder, as `load_coco` takes it.
        split (`str`, *optional*): needed where a folder holds several.
        max_images (`int`, *optional*): only the first so many images of the file.
        size (`dict[str, int]`, *optional*): "shortest_edge" and "longest_edge" in pixels instead of the processor's.
        progress (`bool`, *optional*, defaults to `True`): show bars.

    Returns (when called with a prepared model in eval mode):
        `dict[str, float]`: AP, AP50, AP75, APs, APm, APl and AR@100 in percent; -1 where there is nothing to average.
            The same on every process.

    Raises:
        FileNotFoundError, ValueError: when the file is missing or not COCO format.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        processor: Any,
        annotation_file: str | Path,
        split: str | None = None,
        max_images: int | None = None,
        size: dict[str, int] | None = None,
        progress: bool = True,
    ):
        path = find_annotation_file(annotation_file, split)
        self.annotations = read_annotations(path)
        self.images = self.annotations["images"][:max_images]
        categories = used_categories(self.annotations["categories"], self.annotations["annotations"])
        self.category_ids, self.labels = list(categories), [clean_name(name) for name in categories.values()]
        self.prompts = encode_labels(self.labels, processor.tokenizer, processor.max_tokens)
        self.find = ImageFinder(path.parent)
        self.accelerator = accelerator
        self.processor = processor
        self.size = size
        self.progress = progress and accelerator.is_main_process

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        model = self.accelerator.unwrap_model(model)
        if isinstance(model, FSDPModule):
            # Shards are brought together for `forward` only, unless told otherwise.
            register_fsdp_forward_method(model, "get_image_features")
        detector = Detector(model, self.processor, self.prompts)
        mine = share(len(self.images), self.accelerator.process_index, self.accelerator.num_processes)
        found = {}
        for index in tqdm(mine, desc="evaluation", disable=not self.progress, leave=False):
            entry = self.images[index]
            image = open_annotated_image(self.find(entry["file_name"]), (entry["width"], entry["height"]))
            with self.accelerator.autocast():
                (result,) = detector([image], self.size, [(entry["height"], entry["width"])])
            found[index] = coco_entries(entry["id"], result, self.category_ids)
        # An image that two processes had counts once.
        everyone = {index: entries for part in gather_object([found]) for index, entries in part.items()}
        predictions = [entry for index in sorted(everyone) for entry in everyone[index]]
        image_ids = [image["id"] for image in self.images]
        scores = evaluate_coco(self.annotations, predictions, image_ids=image_ids, progress=False)
        return {name: 100 * scores[name] if scores[name] >= 0 else -1.0 for name in REPORTED}


def make_evaluator(data: DataFile, accelerator: Accelerator, processor: Any) -> DetectionEvaluator | None:
    """The evaluator that a data file asks for under `evaluation`; `None` where it asks for none."""
    if data.evaluation is None:
        return None
    options = {name: value for name, value in data.evaluation.items() if name != "path"}
    return DetectionEvaluator(accelerator, processor, data.folder / data.evaluation["path"], **options)


def share(count: int, process_index: int, num_processes: int) -> list[int]:
    """
    The images of one process, of `count`. Every process gets equally many, the last ones again from the front, since
    forward passes of sharded models need all processes.
    """
    per_process = -(-count // num_processes)
    return [(process_index * per_process + place) % count for place in range(per_process)]


class MaskEvaluator:
    """
    Scores the masks and boxes of a model on a COCO-format file, over all processes.

    Every image is asked for every class of the file. Objects without a mask are left out of both scores, so that
    they compare.

    Args:
        accelerator (`Accelerator`): shares out the images.
        processor (`GLIPv2Processor`).
        annotation_file (`str` or `Path`): a COCO-format json or folder, as `load_coco` takes it.
        split (`str`, *optional*): needed where a folder holds several.
        max_images (`int`, *optional*): only the first so many images of the file.
        progress (`bool`, *optional*, defaults to `True`): show bars.

    Returns (when called with a model in eval mode):
        `dict[str, float]`: AP, AP50, AP75, APs, APm, APl and AR@100 of the masks, and the same of the boxes as
            "box_AP" and so on; in percent, -1 where there is nothing to average. The same on every process.

    Raises:
        FileNotFoundError, ValueError: when the file is missing or not COCO format, or no object has a mask.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        processor: Any,
        annotation_file: str | Path,
        split: str | None = None,
        max_images: int | None = None,
        progress: bool = True,
    ):
        path = find_annotation_file(annotation_file, split)
        content = read_annotations(path)
        with_masks = [annotation for annotation in content["annotations"] if annotation.get("segmentation")]
        if not with_masks:
            raise ValueError(f"No object of {path} has a `segmentation`; score its boxes with `DetectionEvaluator`.")
        self.annotations = {**content, "annotations": with_masks}
        self.images = content["images"][:max_images]
        categories = used_categories(content["categories"], content["annotations"])
        self.category_ids, self.labels = list(categories), [clean_name(name) for name in categories.values()]
        self.find = ImageFinder(path.parent)
        self.accelerator = accelerator
        self.processor = processor
        self.progress = progress and accelerator.is_main_process

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        model = self.accelerator.unwrap_model(model)
        prompts = encode_labels(self.labels, self.processor.tokenizer, self.processor.max_tokens)
        detector = Detector(model, self.processor, prompts, masks=True)
        own = self.images[self.accelerator.process_index :: self.accelerator.num_processes]
        predictions = []
        for entry in tqdm(own, desc="evaluation", disable=not self.progress, leave=False):
            image = open_image(self.find(entry["file_name"]), (entry["width"], entry["height"]))
            with self.accelerator.autocast():
                (result,) = detector([image])
            predictions += coco_entries(entry["id"], result, self.category_ids)
        predictions = gather_object(predictions)
        scores = {}
        for prefix, iou_type in (("", "segm"), ("box_", "bbox")):
            found = evaluate_coco(
                self.annotations,
                predictions,
                iou_type,
                image_ids=[image["id"] for image in self.images],
                progress=False,
            )
            scores |= {prefix + name: 100 * found[name] if found[name] >= 0 else -1.0 for name in REPORTED}
        return scores
