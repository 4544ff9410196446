"""
Exports a detector to ONNX for a fixed size of images and number of labels, and checks it in onnxruntime.

    python examples/export_onnx.py --model hub_upload/glipv2-nano --output outputs/onnx --labels cat cup spoon person
    python examples/export_onnx.py --model hub_upload/glipv2-nano --output outputs/onnx --labels cat cup --masks --int8

Needs `pip install onnx onnxruntime onnxscript`, and a minute for each graph. The folder gets

    detector.onnx             image, text features and label map to scores, centerness, boxes, and what masks need
    masks.onnx                (with --masks) boxes and their tokens to the logits of masks
    vocabulary.safetensors    the labels, encoded once: the graphs' inputs beside the image
    export.json               sizes, and measurements: differences, sizes of files, speed relative to PyTorch

Images of the graph have `--height` and `--width`, multiples of 32. Another vocabulary of at most --max_labels labels
and --max_tokens tokens needs no new export: encode it with `encode_vocabulary`. Boxes are chosen outside of the graph
with `detect`, which shows how to use the files.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from transformers_glipv2 import GLIPv2ForInstanceSegmentation, GLIPv2ForObjectDetection
from transformers_glipv2.cli.arguments import (
    NANO,
    ScriptParser,
    add_image,
    add_model,
    add_output_folder,
    add_threshold,
    check_paths,
    multiple_of_32,
    positive_int,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.cli.results import load_image
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


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, default=NANO)
    add_output_folder(parser, "folder for the graphs")
    add("--labels", nargs="+", required=True, help="names to look for")
    add_image(parser, required=False, help="image to check with (default: scikit-image's cup of coffee)")
    add("--height", type=multiple_of_32, default=384, help="of the graph's images, a multiple of 32 (default: 384)")
    add("--width", type=multiple_of_32, default=576, help="of the graph's images, a multiple of 32 (default: 576)")
    add("--max_labels", type=positive_int, help="labels that the graph takes (default: as many as given)")
    add("--max_tokens", type=positive_int, help="tokens that the graph takes (default: as many as the labels have)")
    add("--masks", action="store_true", help="also export the mask head")
    add("--max_boxes", type=positive_int, default=50, help="boxes that get masks at once (default: 50)")
    add("--int8", action="store_true", help="also write and measure detector_int8.onnx (dynamic, matrix products)")
    add_threshold(parser)
    help = "calls to time, of which the median counts (default: 10)"
    add("--repeats", type=positive_int, default=10, help=help)
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    image = load_image(args.image, "coffee")
    steps = ["encoding the labels", "exporting detector.onnx", "timing detector.onnx"]
    steps += ["exporting masks.onnx"] * args.masks + ["quantizing detector.onnx"] * args.int8
    progress = tqdm(steps, unit="step")
    begin = iter_with_names(progress)
    begin()
    model_class = GLIPv2ForInstanceSegmentation if args.masks else GLIPv2ForObjectDetection
    model, processor = load_checkpoint(model_class, args.model)
    args.output.mkdir(parents=True, exist_ok=True)

    vocabulary = encode_vocabulary(model, processor, args.labels, args.max_labels, args.max_tokens)
    save_file(vars(vocabulary), partial(args.output / "vocabulary.safetensors"))
    finish(args.output / "vocabulary.safetensors")
    pixels, scale = fit(processor, image, args.height, args.width)
    inputs = (pixels, vocabulary.text_features, vocabulary.attention_mask, vocabulary.label_map)

    begin()
    graph = DetectorGraph(model).eval()
    expected = graph(*inputs)
    names = ["scores", "centerness", "boxes", "fused_text", *(f"map{level}" for level in range(3, 8))]
    file = args.output / "detector.onnx"
    export(graph, inputs, DETECTOR_INPUTS, names, partial(file))
    session = open_session(partial(file))
    feeds = dict(zip(DETECTOR_INPUTS, to_numpy(inputs), strict=True))
    found = dict(zip(names, session.run(None, feeds), strict=True))
    report: dict[str, Any] = {"difference": differences(found, dict(zip(names, expected, strict=True)), args)}
    check(report["difference"], file)
    finish(file)

    begin()
    report["times_as_fast_as_pytorch"] = times_as_fast(
        lambda: session.run(None, feeds), lambda: graph(*inputs), args.repeats
    )
    report["megabytes"] = {file.name: round(file.stat().st_size / 1e6, 1)}

    level_shapes = model(
        pixel_values=pixels, text_features=vocabulary.text_features, attention_mask=vocabulary.attention_mask
    ).level_shapes
    settings = {"height": args.height, "width": args.width, "labels": args.labels}
    settings["level_sizes"] = level_shapes.prod(1).tolist()
    boxes = detect(found, settings["level_sizes"], args.threshold, args.max_boxes)
    if args.masks:
        begin()
        report |= export_masks(model.mask_head, found, boxes, vocabulary, args)
    if args.int8:
        begin()
        report["int8"] = quantize(file, feeds, found, lambda: graph(*inputs), args)

    begin()
    for score, label, box in zip(boxes[0], boxes[1], in_image(boxes[2], scale, image), strict=True):
        print(f"{score:.3f}  {args.labels[label]:<24} {box.round().int().tolist()}")
    partial(args.output / "export.json").write_text(json.dumps({**settings, "measured": report}, indent=2) + "\n")
    finish(args.output / "export.json")
    print(json.dumps(report, indent=2))
    return {**settings, "measured": report}


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
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Exports the mask head and compares it, on the detector's boxes, with `GLIPv2MaskHead` itself."""
    maps = [torch.from_numpy(found[name]) for name in found if name.startswith("map")]
    fused_text = torch.from_numpy(found["fused_text"])
    count = min(len(boxes[2]), args.max_boxes)
    # Unused boxes are empty and have the tokens of the first label.
    corners, tokens = torch.zeros(args.max_boxes, 4), vocabulary.label_map[:1].repeat(args.max_boxes, 1)
    corners[:count], tokens[:count] = boxes[2][:count], vocabulary.label_map[boxes[1][:count]]
    inputs = (corners, tokens, fused_text, *maps)
    names = ["boxes", "words", "fused_text", *(name for name in found if name.startswith("map"))]
    file = args.output / "masks.onnx"
    export(MaskGraph(head).eval(), inputs, names, ["mask_logits"], partial(file))
    session = open_session(partial(file))
    feeds = dict(zip(names, to_numpy(inputs), strict=True))
    expected = head(maps, [corners], fused_text, [tokens])
    (logits,) = session.run(None, feeds)
    difference = float((torch.from_numpy(logits).sigmoid() - expected.sigmoid()).abs().max())
    check({"masks": difference}, file)
    finish(file)
    faster = times_as_fast(
        lambda: session.run(None, feeds), lambda: head(maps, [corners], fused_text, [tokens]), args.repeats
    )
    return {"masks": {"difference": difference, "times_as_fast_as_pytorch": faster, "boxes": count}}


def quantize(
    file: Path,
    feeds: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    pytorch: Callable[[], Any],
    args: argparse.Namespace,
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
        "difference": differences(results, {name: torch.from_numpy(value) for name, value in found.items()}, args),
        "times_as_fast_as_pytorch": times_as_fast(lambda: session.run(None, feeds), pytorch, args.repeats),
        "megabytes": round(target.stat().st_size / 1e6, 1),
    }


def differences(
    found: dict[str, np.ndarray], expected: dict[str, Tensor], args: argparse.Namespace
) -> dict[str, float]:
    """The largest of each output; boxes as a fraction of the image's longer side."""
    sides = {"boxes": max(args.height, args.width)}
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


if __name__ == "__main__":
    run(main)
