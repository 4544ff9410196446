"""Average precision on a COCO-format folder while a model trains."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from transformers_glipv2.boxes import inclusive_xyxy_to_coco
from transformers_glipv2.data.coco import PictureFinder, find_annotation_file, used_categories
from transformers_glipv2.data.dataset import open_picture
from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.detections import read_annotations
from transformers_glipv2.prompts import LabelPrompt, split_labels
from transformers_glipv2.training.batches import ignore_stop_signals
from transformers_glipv2.training.data_file import DataFile, clean_name

REPORTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@100")


class DetectionEvaluator:
    """
    Scores a model on the pictures and classes of a COCO-format file, over all processes.

    Every picture is asked for every class of the file, in the file's order and in as few prompts as hold them.

    Args:
        accelerator (`Accelerator`): shares out the pictures.
        processor (`GLIPv2Processor`).
        annotation_file (`str` or `Path`): a COCO-format json or folder, as `load_coco` takes it.
        split (`str`, *optional*): needed where a folder holds several.
        max_images (`int`, *optional*): only the first so many pictures of the file.
        batch_size (`int`, *optional*, defaults to 4): pictures of a process at once.
        num_workers (`int`, *optional*, defaults to 0): processes that read pictures.
        size (`dict[str, int]`, *optional*): "shortest_edge" and "longest_edge" in pixels instead of the
            processor's.
        progress (`bool`, *optional*, defaults to `True`): show bars.

    Returns (when called with a model in eval mode):
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
        batch_size: int = 4,
        num_workers: int = 0,
        size: dict[str, int] | None = None,
        progress: bool = True,
    ):
        path = find_annotation_file(annotation_file, split)
        self.annotations = read_annotations(path)
        self.image_ids = [image["id"] for image in self.annotations["images"][:max_images]]
        categories = used_categories(self.annotations["categories"], self.annotations["annotations"])
        self.category_ids, self.labels = list(categories), [clean_name(name) for name in categories.values()]
        self.prompts = split_labels(self.labels, processor.tokenizer, processor.max_tokens)
        self.accelerator = accelerator
        self.processor = processor
        self.size = size
        self.progress = progress and accelerator.is_main_process
        pictures = _Pictures(self.annotations["images"][:max_images], PictureFinder(path.parent))
        self.loader = DataLoader(
            pictures,
            batch_sampler=_shares(len(pictures), batch_size, accelerator.process_index, accelerator.num_processes),
            collate_fn=self._collate,
            num_workers=num_workers,
            worker_init_fn=ignore_stop_signals,
            generator=torch.Generator().manual_seed(0),
        )

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        found: dict[Any, list[dict[str, Any]]] = {}
        for image_ids, sizes, batch in tqdm(self.loader, desc="evaluation", disable=not self.progress, leave=False):
            batch = send_to_device(batch, self.accelerator.device)
            for image_id, results in zip(image_ids, self._detect(model, batch, sizes), strict=True):
                found[image_id] = [{"image_id": image_id, **result} for result in results]
        # Shares are padded with pictures that another process has too.
        everyone = {key: results for part in gather_object([found]) for key, results in part.items()}
        predictions = [result for results in everyone.values() for result in results]
        scores = evaluate_coco(self.annotations, predictions, image_ids=self.image_ids, progress=False)
        return {name: 100 * scores[name] if scores[name] >= 0 else -1.0 for name in REPORTED}

    def _detect(
        self, model: nn.Module, batch: dict[str, torch.Tensor], sizes: list[tuple[int, int]]
    ) -> list[list[dict[str, Any]]]:
        """For each picture what was found, over all prompts."""
        found: list[list[dict[str, Any]]] = [[] for _ in sizes]
        for prompt in self.prompts:
            for mine, result in zip(found, self._detect_prompt(model, batch, sizes, prompt), strict=True):
                boxes = inclusive_xyxy_to_coco(result["boxes"].float().cpu())
                for score, label, box in zip(
                    result["scores"].tolist(), result["labels"].tolist(), boxes.tolist(), strict=True
                ):
                    category_id = self.category_ids[prompt.indices[label]]
                    mine.append({"category_id": category_id, "score": score, "bbox": box})
        return found

    def _detect_prompt(
        self, model: nn.Module, batch: dict[str, torch.Tensor], sizes: list[tuple[int, int]], prompt: LabelPrompt
    ) -> list[dict[str, Any]]:
        labels = [self.labels[index] for index in prompt.indices]
        tokens = self.processor.tokenizer(
            [prompt.text] * len(sizes), return_tensors="pt", return_token_type_ids=False
        ).to(batch["pixel_values"].device)
        outputs = model(**batch, **tokens)
        return self.processor.post_process_grounded_object_detection(
            outputs, text_labels=[labels] * len(sizes), target_sizes=sizes
        )

    def _collate(
        self, rows: list[tuple[Any, Any]]
    ) -> tuple[list[Any], list[tuple[int, int]], dict[str, torch.Tensor]]:
        options = {} if self.size is None else {"size": self.size}
        pictures = [picture for _, picture in rows]
        batch = self.processor.image_processor(images=pictures, return_tensors="pt", **options)
        return (
            [image_id for image_id, _ in rows],
            [(picture.height, picture.width) for picture in pictures],
            {name: batch[name] for name in ("pixel_values", "pixel_mask")},
        )


def make_evaluator(
    data: DataFile, accelerator: Accelerator, processor: Any, num_workers: int = 0
) -> DetectionEvaluator | None:
    """The evaluator that a data file asks for under `evaluation`; `None` where it asks for none."""
    if data.evaluation is None:
        return None
    options = {name: value for name, value in data.evaluation.items() if name != "path"}
    return DetectionEvaluator(
        accelerator, processor, data.folder / data.evaluation["path"], num_workers=num_workers, **options
    )


class _Pictures(Dataset):
    """(image_id, picture) of the entries of a COCO file."""

    def __init__(self, images: list[dict[str, Any]], find: PictureFinder):
        self.entries = [(image["id"], find(image["file_name"]), (image["width"], image["height"])) for image in images]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image_id, path, size = self.entries[index]
        return image_id, open_picture(path, size)


def _shares(count: int, batch_size: int, process_index: int, num_processes: int) -> list[list[int]]:
    """Batches of indices for one process; all processes get equally many, since their forwards may be collective."""
    per_process = -(-count // num_processes)
    mine = [(process_index * per_process + place) % count for place in range(per_process)]
    return [mine[start : start + batch_size] for start in range(0, per_process, batch_size)]
