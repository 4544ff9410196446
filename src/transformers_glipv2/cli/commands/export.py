"""`glipv2 export`."""

from pathlib import Path
from typing import Annotated

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    Labels,
    Model,
    OutputFolder,
    Threshold,
    checked,
    command_app,
    number,
)

app = command_app()


@app.command()
def export(
    labels: Labels,
    output: OutputFolder = Path("outputs/onnx"),
    model: Model = DEFAULT_MODEL,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            parser=checked(checks.InputFile, "--image"),
            metavar="FILE",
            help="To compare and measure with. Default: the photograph of `glipv2 demo`.",
        ),
    ] = None,
    height: Annotated[
        int, number(checks.multiple_of_32, "--height", help="Of the graph's images, a multiple of 32.")
    ] = 384,
    width: Annotated[
        int, number(checks.multiple_of_32, "--width", help="Of the graph's images, a multiple of 32.")
    ] = 576,
    max_labels: Annotated[
        int | None, number(checks.positive_int, "--max_labels", help="That the graph takes. Default: those given.")
    ] = None,
    max_tokens: Annotated[
        int | None, number(checks.positive_int, "--max_tokens", help="That the graph takes. Default: the labels'.")
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also export the mask head.")] = False,
    max_boxes: Annotated[int, number(checks.positive_int, "--max_boxes", help="Boxes that get masks at once.")] = 50,
    int8: Annotated[bool, typer.Option("--int8", help="Also write detector_int8.onnx.")] = False,
    threshold: Threshold = 0.3,
    repeats: Annotated[int, number(checks.positive_int, "--repeats", help="Calls to time.")] = 10,
    as_json: AsJson = False,
) -> None:
    """
    Export a detector to ONNX, compare it with PyTorch, and measure it.

    Needs `pip install "transformers-glipv2[export]"`, and a minute for each graph.

    Example: glipv2 export --labels "cat,cup,spoon" --output outputs/onnx
    """
    import json
    import sys
    from contextlib import redirect_stdout

    from transformers_glipv2 import GLIPv2ForInstanceSegmentation, GLIPv2ForObjectDetection
    from transformers_glipv2.cli.checkpoints import load_checkpoint
    from transformers_glipv2.cli.sources import sample_image
    from transformers_glipv2.conversion.onnx_folder import ExportSettings, export_folder, require_onnx
    from transformers_glipv2.images.image_io import open_image

    require_onnx()
    pixels = sample_image() if image is None else open_image(image)
    model_class = GLIPv2ForInstanceSegmentation if masks else GLIPv2ForObjectDetection
    settings = ExportSettings(height, width, max_labels, max_tokens, masks, max_boxes, int8, threshold, repeats)
    # The exporter of torch prints what it does.
    with redirect_stdout(sys.stderr):
        report, found = export_folder(*load_checkpoint(model_class, model), labels, pixels, output, settings)
    if as_json:
        print(json.dumps(report))
        return
    for score, label, box in found:
        print(f"{score:.3f}  {label:<32} {box}")
    print(json.dumps(report["measured"], indent=2))
    print(f"Wrote {output}.")
