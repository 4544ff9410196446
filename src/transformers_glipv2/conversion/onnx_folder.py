"""
A folder of ONNX graphs of a detector, for a fixed size of images and number of labels, each compared with PyTorch.

The folder holds `detector.onnx` (image, text features and label map to scores, centerness, boxes, and what masks
need), `masks.onnx` (boxes and their tokens to the logits of masks), `vocabulary.safetensors` (the labels, encoded:
the graphs' inputs beside the image) and `export.json` (sizes and measurements).
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from transformers_glipv2.inference.onnx_export import (
    DetectorGraph,
    MaskGraph,
    Vocabulary,
    encode_vocabulary,
    fit,
    in_image,
)
from transformers_glipv2.layers.mask_head import GLIPv2MaskHead
from transformers_glipv2.post_processing import select_detections

if TYPE_CHECKING:
    import onnxruntime

# The first version whose DeformConv, RoiAlign and GroupNormalization mean what PyTorch's do.
OPSET = 21
TOLERANCE = 1e-3
DETECTOR_INPUTS = ("pixel_values", "text_features", "attention_mask", "label_map")


@dataclass
class ExportSettings:
    """
    What [`export_folder`] exports and measures.

    Attributes:
        height, width (`int`): of the graph's images, multiples of 32.
        max_labels (`int`, *optional*), max_tokens (`int`, *optional*): that the graph takes; by default those given.
        masks (`bool`): also the mask head.
        max_boxes (`int`): boxes that get masks at once.
        int8 (`bool`): also `detector_int8.onnx`, whose matrix products are in 8 bits.
        threshold (`float`): lowest score of a box of the comparison.
        repeats (`int`): calls to time, of which the median counts.
    """

    height: int = 384
    width: int = 576
    max_labels: int | None = None
    max_tokens: int | None = None
    masks: bool = False
    max_boxes: int = 50
    int8: bool = False
    threshold: float = 0.3
    repeats: int = 10


@torch.no_grad()
def export_folder(
    model: Any,
    processor: Any,
    labels: Sequence[str],
    image: Image.Image,
    output: Path,
    settings: ExportSettings | None = None,
) -> tuple[dict[str, Any], list[tuple[float, str, list[int]]]]:
    """
    Exports, compares and measures.

    Args:
        model: a detector in float32 on the CPU, in evaluation mode; with a mask head for `masks`.
        processor (`GLIPv2Processor`).
        labels (`Sequence[str]`): names to look for.
        image (`PIL.Image.Image`): RGB, to compare and measure with.
        output (`Path`): folder; made where it is missing.
        settings (`ExportSettings`, *optional*).

    Returns:
        `tuple`: the content of `export.json`, and (score, label, box in pixels of the image) of what the graph finds
        there.

    Raises:
        ModuleNotFoundError: without onnx, onnxruntime and onnxscript (the extra `export`).
        ValueError: for labels that do not fit, or a model that cannot be exported.
        RuntimeError: when a graph does not compute what PyTorch does; its file is then not written.
    """
    settings = settings or ExportSettings()
    require_onnx()
    steps = ["encoding the labels", "exporting detector.onnx", "timing detector.onnx"]
    steps += ["exporting masks.onnx"] * settings.masks + ["quantizing detector.onnx"] * settings.int8
    begin = iter_with_names(tqdm(steps, unit="step", disable=None))
    begin()
    output.mkdir(parents=True, exist_ok=True)
    vocabulary = encode_vocabulary(model, processor, list(labels), settings.max_labels, settings.max_tokens)
    save_file(vars(vocabulary), partial(output / "vocabulary.safetensors"))
    finish(output / "vocabulary.safetensors")
    pixels, scale = fit(processor, image, settings.height, settings.width)
    inputs = (pixels, vocabulary.text_features, vocabulary.attention_mask, vocabulary.label_map)

    begin()
    graph = DetectorGraph(model).eval()
    expected = graph(*inputs)
    names = ["scores", "centerness", "boxes", "fused_text", *(f"map{level}" for level in range(3, 8))]
    file = output / "detector.onnx"
    export(graph, inputs, DETECTOR_INPUTS, names, partial(file))
    session = open_session(partial(file))
    feeds = dict(zip(DETECTOR_INPUTS, to_numpy(inputs), strict=True))
    found = dict(zip(names, session.run(None, feeds), strict=True))
    report: dict[str, Any] = {"difference": differences(found, dict(zip(names, expected, strict=True)), settings)}
    check(report["difference"], file)
    finish(file)

    begin()
    report["times_as_fast_as_pytorch"] = times_as_fast(
        lambda: session.run(None, feeds), lambda: graph(*inputs), settings.repeats
    )
    report["megabytes"] = {file.name: round(file.stat().st_size / 1e6, 1)}

    level_shapes = model(
        pixel_values=pixels, text_features=vocabulary.text_features, attention_mask=vocabulary.attention_mask
    ).level_shapes
    content: dict[str, Any] = {"height": settings.height, "width": settings.width, "labels": list(labels)}
    content["level_sizes"] = level_shapes.prod(1).tolist()
    boxes = detect(found, content["level_sizes"], settings.threshold, settings.max_boxes)
    if settings.masks:
        begin()
        report |= export_masks(model.mask_head, found, boxes, vocabulary, output, settings)
    if settings.int8:
        begin()
        report["int8"] = quantize(file, feeds, found, lambda: graph(*inputs), settings)

    begin()
    content["measured"] = report
    partial(output / "export.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    finish(output / "export.json")
    corners = in_image(boxes[2], scale, image).round().int().tolist()
    columns = zip(boxes[0].tolist(), boxes[1].tolist(), corners, strict=True)
    return content, [(score, labels[label], box) for score, label, box in columns]


def require_onnx() -> None:
    """Raises ModuleNotFoundError, with what to install, where a package of the extra `export` is missing."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f'exporting needs {name}, which is not installed; run `pip install "transformers-glipv2[export]"`.'
            )


def iter_with_names(bar: tqdm) -> Callable[[], None]:
    """A function that ends the bar's present step and begins the next, whose name the bar shows."""
    steps = iter(bar)

    def begin() -> None:
        bar.set_description(next(steps, "done"))

    return begin


def export(graph: nn.Module, inputs: tuple, input_names: Any, output_names: list[str], file: Path) -> None:
    torch.onnx.export(
        graph,
        inputs,
        file,
        input_names=list(input_names),
        output_names=output_names,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def partial(file: Path) -> Path:
    """Where a file is written until it is whole and checked."""
    return file.with_name(f"{file.name}.partial")


def finish(file: Path) -> None:
    os.replace(partial(file), file)


def open_session(file: Path) -> "onnxruntime.InferenceSession":
    """With as many threads as PyTorch uses, so that the two can be compared."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def detect(
    found: dict[str, np.ndarray], level_sizes: list[int], threshold: float, max_boxes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores `(n,)`, labels `(n,)` and boxes `(n, 4)` xyxy in pixels of the input, from what the graph gives."""
    scores, centerness, boxes = (torch.from_numpy(found[name]) for name in ("scores", "centerness", "boxes"))
    return select_detections(scores, centerness.logit(), boxes, level_sizes, threshold, max_detections=max_boxes)


def export_masks(
    head: GLIPv2MaskHead,
    found: dict[str, np.ndarray],
    boxes: tuple[Tensor, Tensor, Tensor],
    vocabulary: Vocabulary,
    output: Path,
    settings: ExportSettings,
) -> dict[str, Any]:
    """Exports the mask head and compares it, on the detector's boxes, with `GLIPv2MaskHead` itself."""
    maps = [torch.from_numpy(found[name]) for name in found if name.startswith("map")]
    fused_text = torch.from_numpy(found["fused_text"])
    count = min(len(boxes[2]), settings.max_boxes)
    # Unused boxes are empty and have the tokens of the first label.
    corners, tokens = torch.zeros(settings.max_boxes, 4), vocabulary.label_map[:1].repeat(settings.max_boxes, 1)
    corners[:count], tokens[:count] = boxes[2][:count], vocabulary.label_map[boxes[1][:count]]
    inputs = (corners, tokens, fused_text, *maps)
    names = ["boxes", "words", "fused_text", *(name for name in found if name.startswith("map"))]
    file = output / "masks.onnx"
    export(MaskGraph(head).eval(), inputs, names, ["mask_logits"], partial(file))
    session = open_session(partial(file))
    feeds = dict(zip(names, to_numpy(inputs), strict=True))
    expected = head(maps, [corners], fused_text, [tokens])
    (logits,) = session.run(None, feeds)
    difference = float((torch.from_numpy(logits).sigmoid() - expected.sigmoid()).abs().max())
    check({"masks": difference}, file)
    finish(file)
    faster = times_as_fast(
        lambda: session.run(None, feeds), lambda: head(maps, [corners], fused_text, [tokens]), settings.repeats
    )
    return {"masks": {"difference": difference, "times_as_fast_as_pytorch": faster, "boxes": count}}


def quantize(
    file: Path,
    feeds: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    pytorch: Callable[[], Any],
    settings: ExportSettings,
) -> dict[str, Any]:
    """Matrix products in 8 bits, scales of the activations at run time; convolutions stay as they are."""
    from onnxruntime.quantization import quant_pre_process, quantize_dynamic

    target = file.with_name("detector_int8.onnx")
    prepared = file.with_name("detector_prepared.onnx")
    quant_pre_process(file, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, partial(target), op_types_to_quantize=["MatMul", "Gemm"])
    prepared.unlink()
    finish(target)
    session = open_session(target)
    names = list(found)
    results = dict(zip(names, session.run(None, feeds), strict=True))
    return {
        "difference": differences(results, {name: torch.from_numpy(value) for name, value in found.items()}, settings),
        "times_as_fast_as_pytorch": times_as_fast(lambda: session.run(None, feeds), pytorch, settings.repeats),
        "megabytes": round(target.stat().st_size / 1e6, 1),
    }


def differences(
    found: dict[str, np.ndarray], expected: dict[str, Tensor], settings: ExportSettings
) -> dict[str, float]:
    """The largest of each output; boxes as a fraction of the image's longer side."""
    sides = {"boxes": max(settings.height, settings.width)}
    return {
        name: float((torch.from_numpy(found[name]) - expected[name]).abs().max()) / sides.get(name, 1)
        for name in ("scores", "centerness", "boxes")
    }


def check(difference: dict[str, float], file: Path) -> None:
    """Raises RuntimeError where a graph does not compute what PyTorch does."""
    wrong = {name: value for name, value in difference.items() if not value < TOLERANCE}
    if wrong:
        raise RuntimeError(f"{file} differs from PyTorch by more than {TOLERANCE}: {wrong}; do not use it.")


def times_as_fast(graph: Callable[[], Any], pytorch: Callable[[], Any], repeats: int) -> float:
    """Median seconds of `pytorch` over those of `graph`, in turn, after a call of each that does not count."""
    seconds: dict[Callable[[], Any], list[float]] = {graph: [], pytorch: []}
    for call in [graph, pytorch] * (repeats + 1):
        start = time.perf_counter()
        call()
        seconds[call].append(time.perf_counter() - start)
    return round(statistics.median(seconds[pytorch][1:]) / statistics.median(seconds[graph][1:]), 2)


def to_numpy(tensors: tuple[Tensor, ...]) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in tensors]
