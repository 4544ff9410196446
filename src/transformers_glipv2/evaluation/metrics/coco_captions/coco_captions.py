"""COCO caption scores for `evaluate.load`."""

import datasets
import evaluate

from transformers_glipv2.evaluation.captions import DEFAULT_METRICS, evaluate_captions

_DESCRIPTION = "BLEU-1 to 4, METEOR, ROUGE-L and CIDEr-D of one caption an image; SPICE where its models are."

_INPUTS = """
Args:
    predictions: one for each image: `image_id`, `caption`.
    references: one for each image: `image_id`, `captions` (strings).
    metrics: of "BLEU", "METEOR", "ROUGE_L", "CIDEr", "SPICE"; all but SPICE by default.
    tokenize: False where captions are words in lower case without punctuation already. Else Java is needed.

Returns:
    Bleu_1 to Bleu_4, METEOR, ROUGE_L, CIDEr as fractions, per_image.
"""

_CITATION = "Chen et al., Microsoft COCO Captions: Data Collection and Evaluation Server, 2015."


class COCOCaptions(evaluate.Metric):
    """See `inputs_description`."""

    def _info(self):
        text = datasets.Value("string")
        image_id = {"image_id": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {**image_id, "caption": text},
                    "references": {**image_id, "captions": datasets.List(text)},
                }
            ),
        )

    def _compute(self, predictions, references, metrics=DEFAULT_METRICS, tokenize=True):
        annotations = [
            {"image_id": example["image_id"], "caption": caption}
            for example in references
            for caption in example["captions"]
        ]
        return evaluate_captions({"annotations": annotations}, predictions, metrics, tokenize=tokenize)
