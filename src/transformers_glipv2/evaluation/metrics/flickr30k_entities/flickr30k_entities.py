"""Flickr30k Entities recall for `evaluate.load`."""

import datasets
import evaluate

from transformers_glipv2.evaluation.flickr30k import evaluate_flickr30k

_DESCRIPTION = "Recall at 1, 5 and 10 of phrase grounding, any-box and merged-boxes, and its upper bound."

_INPUTS = """
Args:
    predictions: one for each sentence: `image_id`, `sentence_id`, and `boxes`: for each phrase, in order, boxes x1,
        y1, x2, y2 in pixels, best first.
    references: one for each sentence: `image_id`, `sentence_id`, and `phrases`: a list of `types` and `boxes`.
    top_k: the ks, (1, 5, 10) by default.

Returns:
    `any_box` and `merged_boxes`: recall@k and upper_bound by phrase type as fractions; `phrase_counts`.
"""

_CITATION = "Plummer et al., Flickr30k Entities, ICCV 2015; Kamath et al., MDETR, ICCV 2021."


class Flickr30kEntities(evaluate.Metric):
    """See `inputs_description`."""

    def _info(self):
        boxes = datasets.List(datasets.List(datasets.Value("float64")))
        names = datasets.List(datasets.Value("string"))
        keys = {"image_id": datasets.Value("int64"), "sentence_id": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {**keys, "boxes": datasets.List(boxes)},
                    "references": {**keys, "phrases": datasets.List({"types": names, "boxes": boxes})},
                }
            ),
        )

    def _compute(self, predictions, references, top_k=(1, 5, 10)):
        return evaluate_flickr30k(list(references), predictions, top_k=top_k)
