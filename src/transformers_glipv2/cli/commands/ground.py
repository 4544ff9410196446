"""`glipv2 ground`."""

from typing import Annotated

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.cli.options import (
    DEFAULT_MODEL,
    AllowPrivateUrls,
    AsJson,
    Backend,
    BatchSize,
    Device,
    Images,
    Model,
    Output,
    Threshold,
    command_app,
    number,
    split_labels,
)

app = command_app()


@app.command()
def ground(
    images: Images,
    text: Annotated[str, typer.Option("--text", help="Sentence about the image.", show_default=False)],
    phrases: Annotated[
        list[str] | None,
        typer.Option(
            "--phrases",
            callback=split_labels,
            help="Parts of the sentence to ground, by comma or repeated. Default: its noun phrases.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, number(checks.positive_int, "--top_k", help="Boxes of a phrase at most.")] = 1,
    model: Model = DEFAULT_MODEL,
    threshold: Threshold = 0.3,
    batch_size: BatchSize = 1,
    device: Device = "auto",
    backend: Backend = "torch",
    output: Output = None,
    as_json: AsJson = False,
    allow_private_urls: AllowPrivateUrls = False,
) -> None:
    """
    Find what the phrases of a sentence refer to.

    Example: glipv2 ground table.jpg --text "a cup of coffee on a wooden table"
    """
    from transformers_glipv2 import GLIPv2ForObjectDetection
    from transformers_glipv2.cli.predictions import Report, Shown, load_detector
    from transformers_glipv2.cli.results import phrase_spans, phrases_found

    report = Report(images, "ground", output, as_json, threshold, allow_private_urls)
    spans = phrase_spans(phrases, text) if phrases else None
    detector = load_detector(
        GLIPv2ForObjectDetection, model, device, threshold=threshold, batch_size=batch_size, backend=backend
    )
    report.run(
        lambda opened: detector.ground(opened, text, spans, top_k),
        lambda result: Shown(phrases_found(result, threshold), fields={"text": text}),
        batch_size,
    )
