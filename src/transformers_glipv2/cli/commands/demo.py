"""`glipv2 demo`."""

from transformers_glipv2.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    Device,
    LabelsOrNone,
    Model,
    Output,
    Threshold,
    command_app,
)

app = command_app()
LABELS = ("person", "face")


@app.command()
def demo(
    labels: LabelsOrNone = None,
    model: Model = DEFAULT_MODEL,
    threshold: Threshold = 0.57,
    device: Device = "auto",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """
    Show `detect` on a photograph that comes with the package.

    The photograph is NASA's of the astronaut Eileen Collins (public domain), as in scikit-image. Example: glipv2 demo
    """
    from transformers_glipv2.cli.commands.detect import detect
    from transformers_glipv2.cli.sources import sample_file

    with sample_file() as image:
        detect(
            [str(image)],
            list(labels or LABELS),
            model=model,
            threshold=threshold,
            device=device,
            output=output,
            as_json=as_json,
        )
