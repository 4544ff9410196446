"""COCO box and mask average precision for `evaluate.load`."""

import datasets
import evaluate

from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.metric_columns import coco_content, detection_features, result_entries

_DESCRIPTION = "The twelve numbers of COCO detection or, with the configuration `segm`, instance segmentation."

_INPUTS = """
Args:
    predictions: one for each image: `image_id`, and lists of equal length `category_id`, `score` and `bbox` (x, y,
        width, height in pixels), with `segm` also `segmentation` (RLE: `size`, `counts`).
    references: one for each image: `image_id`, `height`, `width`, and lists `category_id`, `bbox`, `area`, `iscrowd`,
        with `segm` also `segmentation` (RLE).
    categories: entries of `id` and `name`; by default the ids of the references.

Returns:
    AP, AP50, AP75, APs, APm, APl, AR@1, AR@10, AR@100, ARs, ARm, ARl as fractions, -1 where there is nothing to
    average, and `per_category`.

Example:
    >>> metric = evaluate.load("transformers_glipv2/evaluation/metrics/coco_detection")
    >>> found = {"image_id": 1, "category_id": [3], "score": [0.9], "bbox": [[0, 0, 20, 20]]}
    >>> true = {"image_id": 1, "height": 50, "width": 50, "category_id": [3], "bbox": [[0, 0, 20, 20]]}
    >>> metric.compute(predictions=[found], references=[true | {"area": [400], "iscrowd": [0]}])["AP"]
    1.0
"""

_CITATION = "Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014."


class COCODetection(evaluate.Metric):
    """See `inputs_description`."""

    def _info(self):
        reference = {
            "area": datasets.List(datasets.Value("float64")),
            "iscrowd": datasets.List(datasets.Value("int8")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=detection_features(self.config_name, reference),
        )

    def _compute(self, predictions, references, categories=None):
        iou_type = "segm" if self.config_name == "segm" else "bbox"
        content = coco_content(references, categories, iou_type)
        return evaluate_coco(content, result_entries(predictions, iou_type), iou_type, progress=False)
