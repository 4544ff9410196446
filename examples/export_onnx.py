"""
Exports a detector to ONNX for a fixed size of images and number of labels, and checks it in onnxruntime.

    python examples/export_onnx.py --model hub_upload/glipv2-nano --output outputs/onnx --labels cat cup spoon person
    python examples/export_onnx.py --model hub_upload/glipv2-nano --output outputs/onnx --labels cat cup --masks --int8

Needs `pip install "transformers-glipv2[export]"`, and a minute for each graph. The folder gets

    detector.onnx             image, text features and label map to scores, centerness, boxes, and what masks need
    masks.onnx                (with --masks) boxes and their tokens to the logits of masks
    vocabulary.safetensors    the labels, encoded once: the graphs' inputs beside the image
    export.json               sizes, and measurements: differences, sizes of files, speed relative to PyTorch

Images of the graph have `--height` and `--width`, multiples of 32. Another vocabulary of at most --max_labels labels
and --max_tokens tokens needs no new export: encode it with `encode_vocabulary`. Boxes are chosen outside of the graph
with `detect` of `transformers_glipv2.conversion.onnx_folder`, which shows how to use the files.
"""

import argparse
import json
from typing import Any

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
from transformers_glipv2.conversion.onnx_folder import ExportSettings, export_folder

SETTINGS = ("height", "width", "max_labels", "max_tokens", "masks", "max_boxes", "int8", "threshold", "repeats")


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


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = check_paths(parse_args(arguments))
    image = load_image(args.image, "coffee")
    model_class = GLIPv2ForInstanceSegmentation if args.masks else GLIPv2ForObjectDetection
    model, processor = load_checkpoint(model_class, args.model)
    settings = ExportSettings(**{name: getattr(args, name) for name in SETTINGS})
    report, found = export_folder(model, processor, args.labels, image, args.output, settings)
    for score, label, box in found:
        print(f"{score:.3f}  {label:<24} {box}")
    print(json.dumps(report["measured"], indent=2))
    return report


if __name__ == "__main__":
    run(main)
