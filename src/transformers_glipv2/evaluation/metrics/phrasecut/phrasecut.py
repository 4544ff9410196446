"""PhraseCut mask scores for `evaluate.load`."""

import datasets
import evaluate

from transformers_glipv2.evaluation.metric_columns import rle_features
from transformers_glipv2.evaluation.phrasecut import evaluate_phrasecut

_DESCRIPTION = "Mean and cumulative IoU and precision at IoU 0.5 to 0.9 of masks of phrases."

_INPUTS = """
Args:
    predictions: one for each phrase: `task_id`, `mask` (RLE: `size`, `counts`).
    references: one for each phrase: `task_id`, `height`, `width`, `polygons` (instances -> polygons -> [x, y] in
        pixels).

Returns:
    count, mean_mask_iou, cum_mask_iou, mask_precision (by threshold, of IoUs strictly above it).
"""

_CITATION = "Wu et al., PhraseCut: Language-based Image Segmentation in the Wild, CVPR 2020."


class PhraseCut(evaluate.Metric):
    """See `inputs_description`."""

    def _info(self):
        points = datasets.List(datasets.List(datasets.Value("float64")))
        size = {"height": datasets.Value("int64"), "width": datasets.Value("int64")}
        task_id = {"task_id": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {**task_id, "mask": rle_features()},
                    "references": {**task_id, **size, "polygons": datasets.List(datasets.List(points))},
                }
            ),
        )

    def _compute(self, predictions, references):
        examples = list(references)
        structure = {"name": "", "type": "name"}
        tasks = [
            {
                "task_id": example["task_id"],
                "image_id": example["task_id"],
                "Polygons": example["polygons"],
                "instance_boxes": [],
                "phrase_structure": structure,
            }
            for example in examples
        ]
        images = [
            {"image_id": example["task_id"], "height": example["height"], "width": example["width"]}
            for example in examples
        ]
        return evaluate_phrasecut(tasks, images, predictions, progress=False)["all"]
