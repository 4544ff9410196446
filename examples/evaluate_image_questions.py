"""
Scores answers to the questions of one file of images and questions, as DAQUAR can be written, beside two baselines.

    python examples/evaluate_image_questions.py --model MODEL --questions daquar/val.json --images daquar/images \\
        --output answers.json

The VQA accuracy is over all questions and of each type, the first two words of a question. The baselines are the same
model on blank images, and the best constant answer of each type, chosen on the very questions that are scored. VQA v2
has a file format and a script of its own, `evaluate_vqa.py`.
"""

import argparse
from typing import Any

from accelerate import Accelerator

from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_max_samples,
    add_model,
    add_output_file,
    check_paths,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_json
from transformers_glipv2.data.vqa import load_image_questions
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering
from transformers_glipv2.training import AnswerEvaluator, best_constant_answers


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id of a model with an answer head")
    add("--questions", type=InputFile, required=True, help="JSON file of images and questions with answers")
    add("--images", type=InputFolder, help="folder of its images (default: that of the file)")
    add_max_samples(parser, "questions, the first of the file (default: all)")
    add_output_file(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    accelerator = Accelerator()
    questions = load_image_questions(args.questions, args.images)
    examples = [questions[index] for index in range(min(args.max_samples or len(questions), len(questions)))]
    model, processor = load_checkpoint(GLIPv2ForVisualQuestionAnswering, args.model, accelerator.device)
    scores: dict[str, Any] = {
        "questions": len(examples),
        "model": AnswerEvaluator(accelerator, processor, examples)(model),
        "blank images": AnswerEvaluator(accelerator, processor, examples, with_images=False)(model),
        "best constant answer": best_constant_answers(examples),
    }
    for name in ("model", "blank images", "best constant answer"):
        print(f"{name}: {scores[name]['accuracy']:.1f} % of {len(examples)} questions")
    if args.output is not None:
        write_json(args.output, scores)
    return scores


if __name__ == "__main__":
    run(main)
