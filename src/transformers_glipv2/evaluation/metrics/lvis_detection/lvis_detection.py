"""LVIS box and mask average precision, fixed and classic, for `evaluate.load`."""

import datasets
import evaluate

from transformers_glipv2.evaluation.lvis import evaluate_lvis, evaluate_lvis_fixed
from transformers_glipv2.evaluation.metric_columns import coco_content, detection_features, result_entries

_DESCRIPTION = "LVIS average precision, of boxes or, with the configuration `segm`, of masks."

_INPUTS = """
Args:
    predictions: one for each image: `image_id`, and lists of equal length `category_id`, `score` and `bbox` (x, y,
        width, height in pixels), with `segm` also `segmentation` (RLE: `size`, `counts`).
    references: one for each image: `image_id`, `height`, `width`, lists `category_id`, `bbox`, `area`, with `segm`
        also `segmentation` (RLE), and the lists `neg_category_ids` and `not_exhaustive_category_ids`.
    categories: entries of `id`, `name` and `frequency` ("r", "c" or "f"); needed.
    protocol: "fixed" (10,000 detections a category, the default) or "classic" (300 an image).

Returns:
    AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR, ARs, ARm, ARl as fractions, -1 where there is nothing to average,
    and `per_category`.
"""

_CITATION = "Gupta et al., LVIS, CVPR 2019; Dave et al., Evaluating Large-Vocabulary Object Detectors, 2021."


class LVISDetection(evaluate.Metric):
    """See `inputs_description`."""

    def _info(self):
        ids = datasets.List(datasets.Value("int64"))
        reference = {
            "area": datasets.List(datasets.Value("float64")),
            "neg_category_ids": ids,
            "not_exhaustive_category_ids": ids,
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=detection_features(self.config_name, reference),
        )

    def _compute(self, predictions, references, categories, protocol="fixed"):
        if protocol not in ("fixed", "classic"):
            raise ValueError(f"`protocol` is {protocol!r}; choose fixed or classic.")
        iou_type = "segm" if self.config_name == "segm" else "bbox"
        content = coco_content(references, categories, iou_type)
        function = evaluate_lvis_fixed if protocol == "fixed" else evaluate_lvis
        return function(content, result_entries(predictions, iou_type), iou_type, progress=False)
