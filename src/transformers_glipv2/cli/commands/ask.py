"""`glipv2 ask`."""

from typing import Annotated

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.cli.options import (
    DEFAULT_MODEL,
    AllowPrivateUrls,
    AsJson,
    BatchSize,
    Device,
    Images,
    Model,
    Output,
    Threshold,
    command_app,
    number,
)

app = command_app()


@app.command()
def ask(
    images: Images,
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask.", show_default=False)],
    top_k: Annotated[int, number(checks.positive_int, "--top_k", help="Answers to print.")] = 5,
    model: Model = DEFAULT_MODEL,
    threshold: Threshold = 0.3,
    batch_size: BatchSize = 1,
    device: Device = "auto",
    output: Output = None,
    as_json: AsJson = False,
    allow_private_urls: AllowPrivateUrls = False,
) -> None:
    """
    Answer a question, with boxes of what it names; the model needs an answer head.

    Example: glipv2 ask street.jpg --question "what color is the car?" --model MODEL
    """
    from transformers_glipv2.cli.predictions import Report, Shown, load_detector
    from transformers_glipv2.cli.results import phrases_found
    from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering

    report = Report(images, "ask", output, as_json, threshold, allow_private_urls)
    detector = load_detector(
        GLIPv2ForVisualQuestionAnswering, model, device, threshold=threshold, batch_size=batch_size
    )

    def show(result: dict) -> Shown:
        answers, best = result["answers"], result["answers"][0]
        return Shown(
            phrases_found(result["phrases"], threshold),
            lines=[f"{answer['score']:.3f}  {answer['answer']}" for answer in answers],
            fields={"question": question, "answers": answers},
            title=f"{question} {best['answer']} ({best['score']:.2f})",
        )

    report.run(lambda opened: detector.answer(opened, question, top_k), show, batch_size)
