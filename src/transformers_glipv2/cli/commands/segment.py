"""`glipv2 segment`."""

from typing import Annotated

import typer

from transformers_glipv2.cli import checks
from transformers_glipv2.cli.options import (
    DEFAULT_MODEL,
    AgnosticNms,
    AllowPrivateUrls,
    AsJson,
    Backend,
    BatchSize,
    Device,
    Images,
    LabelsOrNone,
    MaxDetections,
    Model,
    NmsThreshold,
    Output,
    Threshold,
    command_app,
    number,
)

app = command_app()


@app.command()
def segment(
    images: Images,
    labels: LabelsOrNone = None,
    phrase: Annotated[
        str | None,
        typer.Option("--phrase", help="One mask of all that a phrase refers to, in place of --labels."),
    ] = None,
    model: Model = DEFAULT_MODEL,
    threshold: Threshold = 0.3,
    mask_threshold: Annotated[
        float, number(checks.fraction, "--mask_threshold", help="Lowest probability of a pixel of a mask.")
    ] = 0.5,
    nms_threshold: NmsThreshold = 0.6,
    agnostic_nms: AgnosticNms = False,
    max_detections: MaxDetections = 100,
    batch_size: BatchSize = 1,
    device: Device = "auto",
    backend: Backend = "torch",
    output: Output = None,
    as_json: AsJson = False,
    allow_private_urls: AllowPrivateUrls = False,
) -> None:
    """
    Masks of what labels or a phrase name; the model needs a mask head.

    Examples: glipv2 segment street.jpg --labels "person,car" --model MODEL;
    glipv2 segment table.jpg --phrase "the red cup left of the bottle" --model MODEL
    """
    if labels and phrase:
        raise typer.BadParameter("give names by --labels, or one phrase by --phrase", param_hint="--labels")
    from transformers_glipv2 import GLIPv2ForInstanceSegmentation
    from transformers_glipv2.cli.predictions import Report, Shown, load_detector
    from transformers_glipv2.cli.results import Found, objects_found
    from transformers_glipv2.inference.segmentation import segment_phrase

    report = Report(images, "segment", output, as_json, threshold, allow_private_urls)
    detector = load_detector(
        GLIPv2ForInstanceSegmentation,
        model,
        device,
        threshold=threshold,
        nms_threshold=nms_threshold,
        agnostic_nms=agnostic_nms,
        max_detections=max_detections,
        batch_size=batch_size,
        backend=backend,
    )
    if phrase is None:
        report.run(
            lambda opened: detector.segment(opened, labels, mask_threshold=mask_threshold, return_rle=False),
            lambda result: Shown(objects_found(result)),
            batch_size,
        )
        return

    name = phrase

    def show(result: dict | None) -> Shown:
        found = [Found(name, result["score"], result["box"].tolist(), result["mask"].numpy())] if result else []
        return Shown(found, fields={"phrase": name})

    report.run(
        lambda opened: [
            segment_phrase(detector.model, detector.processor, image, name, threshold, mask_threshold)
            for image in opened
        ],
        show,
    )
