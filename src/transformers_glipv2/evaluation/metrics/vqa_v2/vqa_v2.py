"""VQA v2 accuracy for `evaluate.load`."""

import datasets
import evaluate

from transformers_glipv2.evaluation.vqa import evaluate_vqa

_DESCRIPTION = "The accuracy of answers against those of ten annotators."

_INPUTS = """
Args:
    predictions: one for each question: `question_id`, `answer`.
    references: one for each question: `question_id`, `answers` (strings), `question_type`, `answer_type`.

Returns:
    overall, per_question_type, per_answer_type in percent, per_question.
"""

_CITATION = "Goyal et al., Making the V in VQA Matter, CVPR 2017."


class VQAv2(evaluate.Metric):
    """See `inputs_description`."""

    def _info(self):
        text = datasets.Value("string")
        question_id = {"question_id": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {**question_id, "answer": text},
                    "references": {
                        **question_id,
                        "answers": datasets.List(text),
                        "question_type": text,
                        "answer_type": text,
                    },
                }
            ),
        )

    def _compute(self, predictions, references):
        annotations = [
            {**example, "answers": [{"answer": text} for text in example["answers"]]} for example in references
        ]
        return evaluate_vqa({"annotations": annotations}, predictions)
