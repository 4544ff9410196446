"""Training of masks: average precision of masks while a model trains, and checkpoints that keep their other heads."""

import re
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import safe_open
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from transformers_glipv2.data.coco import PictureFinder, find_annotation_file, used_categories
from transformers_glipv2.data.dataset import open_picture
from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.detections import read_annotations
from transformers_glipv2.evaluation.detector import Detector, coco_entries
from transformers_glipv2.inference import encode_labels
from transformers_glipv2.training.data_file import clean_name

REPORTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@100")


class MaskEvaluator:
    """
    Scores the masks and boxes of a model on a COCO-format file, over all processes.

    Every picture is asked for every class of the file. Objects without a mask are left out of both scores, so that
    they compare.

    Args:
        accelerator (`Accelerator`): shares out the pictures.
        processor (`GLIPv2Processor`).
        annotation_file (`str` or `Path`): a COCO-format json or folder, as `load_coco` takes it.
        split (`str`, *optional*): needed where a folder holds several.
        max_images (`int`, *optional*): only the first so many pictures of the file.
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
        self.find = PictureFinder(path.parent)
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
        for image in tqdm(own, desc="evaluation", disable=not self.progress, leave=False):
            picture = open_picture(self.find(image["file_name"]), (image["width"], image["height"]))
            with self.accelerator.autocast():
                (result,) = detector([picture])
            predictions += coco_entries(image["id"], result, self.category_ids)
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


def load_other_heads(source: str | Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint that belong to heads which a class does not have.

    Args:
        source (`str` or `Path`): folder or Hub id of a checkpoint in safetensors files.
        model (`PreTrainedModel`): of the class in question.

    Returns:
        `dict[str, torch.Tensor]`: name -> tensor; empty where the class has every head of the checkpoint.

    Raises:
        FileNotFoundError: when there are no safetensors files.
    """
    own = model.state_dict().keys()
    heads = re.compile("|".join(model._keys_to_ignore_on_load_unexpected))
    tensors = {}
    for file in _weight_files(str(source)):
        with safe_open(file, "pt") as weights:
            names = [name for name in weights.keys() if name not in own and heads.match(name)]  # noqa: SIM118
            tensors |= {name: weights.get_tensor(name) for name in names}
    return tensors


def _weight_files(source: str) -> list[str]:
    options = {"_raise_exceptions_for_missing_entries": False}
    whole = cached_file(source, "model.safetensors", **options)
    if whole is not None:
        return [whole]
    index = cached_file(source, "model.safetensors.index.json", **options)
    if index is None:
        raise FileNotFoundError(f"{source} holds no model.safetensors; save the model with `save_pretrained` first.")
    return get_checkpoint_shard_files(source, index)[0]
