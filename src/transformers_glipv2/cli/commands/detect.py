"""`glipv2 detect`."""

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
)

app = command_app()


@app.command()
def detect(
    images: Images,
    labels: LabelsOrNone = None,
    model: Model = DEFAULT_MODEL,
    threshold: Threshold = 0.3,
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
    Find objects by their names: boxes of any labels.

    Example: glipv2 detect street.jpg --labels "person,traffic light,car"
    """
    from transformers_glipv2 import GLIPv2ForObjectDetection
    from transformers_glipv2.cli.predictions import Report, Shown, load_detector
    from transformers_glipv2.cli.results import objects_found

    report = Report(images, "detect", output, as_json, threshold, allow_private_urls)
    detector = load_detector(
        GLIPv2ForObjectDetection,
        model,
        device,
        threshold=threshold,
        nms_threshold=nms_threshold,
        agnostic_nms=agnostic_nms,
        max_detections=max_detections,
        batch_size=batch_size,
        backend=backend,
    )
    report.run(lambda opened: detector.detect(opened, labels), lambda result: Shown(objects_found(result)), batch_size)
