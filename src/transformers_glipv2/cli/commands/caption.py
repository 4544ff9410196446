"""`glipv2 caption`."""

from typing import Annotated

import typer

from transformers_glipv2.cli.options import (
    DEFAULT_MODEL,
    AllowPrivateUrls,
    AsJson,
    BatchSize,
    Device,
    Images,
    MaxNewTokens,
    Model,
    NumBeams,
    Output,
    Threshold,
    command_app,
)

app = command_app()


@app.command()
def caption(
    images: Images,
    prefix: Annotated[str, typer.Option("--prefix", help="How the caption begins.", show_default=False)] = "",
    num_beams: NumBeams = 5,
    max_new_tokens: MaxNewTokens = 40,
    model: Model = DEFAULT_MODEL,
    threshold: Threshold = 0.3,
    batch_size: BatchSize = 1,
    device: Device = "auto",
    output: Output = None,
    as_json: AsJson = False,
    allow_private_urls: AllowPrivateUrls = False,
) -> None:
    """
    Describe images, with boxes of what the captions name; the model needs a caption head.

    Example: glipv2 caption street.jpg --prefix "an image of" --model MODEL
    """
    from transformers_glipv2 import GLIPv2ForConditionalGeneration
    from transformers_glipv2.cli.predictions import Report, Shown, load_detector
    from transformers_glipv2.cli.results import phrases_found

    report = Report(images, "caption", output, as_json, threshold, allow_private_urls)
    detector = load_detector(GLIPv2ForConditionalGeneration, model, device, threshold=threshold, batch_size=batch_size)
    generation = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "do_sample": False}

    def show(result: dict) -> Shown:
        return Shown(
            phrases_found(result["phrases"], threshold),
            lines=[result["caption"]],
            fields={"caption": result["caption"]},
            title=result["caption"],
        )

    report.run(lambda opened: detector.caption(opened, prefix, generation), show, batch_size)
