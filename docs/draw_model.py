"""
Draws how the model works into docs/figures/model.svg.

    python docs/draw_model.py

Each box is a part of the network with its symbol in the paper; the small line under it names its code.
"""

import argparse
from pathlib import Path

from transformers_glipv2.cli.arguments import OutputFile, ScriptParser, check_paths
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.files import write_text

OUTPUT = Path(__file__).parent / "figures" / "model.svg"
WIDTH, HEIGHT = 1120, 560
FONT = "font-family='Helvetica, Arial, sans-serif'"
# Fill and border of image, text, fusion, task, loss and input boxes.
COLORS = {
    "vision": ("#dbeafe", "#1d4ed8"),
    "text": ("#fef3c7", "#b45309"),
    "fusion": ("#dcfce7", "#15803d"),
    "task": ("#f3e8ff", "#7e22ce"),
    "loss": ("#fee2e2", "#b91c1c"),
    "input": ("#f8fafc", "#475569"),
}


def box(x: int, y: int, width: int, height: int, kind: str, title: str, *lines: str) -> str:
    """A rounded box with a bold title and smaller lines under it, centred."""
    fill, border = COLORS[kind]
    middle, top = x + width // 2, y + height // 2 - 8 * len(lines) + 5
    parts = [
        f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='9' fill='{fill}' stroke='{border}' "
        "stroke-width='1.5'/>",
        text(middle, top, title, 14, weight="bold"),
    ]
    parts += [text(middle, top + 17 * (index + 1), line, 12) for index, line in enumerate(lines)]
    return "\n".join(parts)


def text(x: int, y: int, content: str, size: int, anchor: str = "middle", weight: str = "normal") -> str:
    content = content.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f"<text x='{x}' y='{y}' {FONT} font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' "
        f"fill='#0f172a'>{content}</text>"
    )


def arrow(*points: tuple[int, int], dashed: bool = False) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    dashes = " stroke-dasharray='5 4'" if dashed else ""
    return (
        f"<polyline points='{path}' fill='none' stroke='#475569' stroke-width='1.8'{dashes} marker-end='url(#tip)'/>"
    )


def draw_model() -> str:
    """The figure as SVG."""
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{HEIGHT}' viewBox='0 0 {WIDTH} {HEIGHT}' "
        "role='img'>",
        "<title>How GLIPv2 works</title>",
        "<defs><marker id='tip' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
        "orient='auto'><path d='M0,0 L10,5 L0,10 z' fill='#475569'/></marker></defs>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>",
        # Encoders.
        box(16, 82, 134, 70, "input", "image", "any size"),
        box(16, 298, 134, 70, "input", "text", "labels, a sentence,", "or a question"),
        box(190, 72, 190, 90, "vision", "Enc_V", "backbone, pyramid P3..P7", "get_image_features"),
        box(190, 288, 190, 90, "text", "Enc_L", "BERT-like encoder", "get_text_features"),
        arrow((150, 117), (188, 117)),
        arrow((150, 333), (188, 333)),
        text(402, 108, "O0", 15, weight="bold"),
        text(402, 325, "P0", 15, weight="bold"),
        # Deep fusion.
        "<rect x='440' y='28' width='240' height='374' rx='12' fill='#f0fdf4' stroke='#15803d' stroke-width='1.5'/>",
        text(560, 52, "Enc_VL: a stack of such layers", 13, weight="bold"),
        text(560, 69, "GLIPv2TowerLayer", 12),
        box(460, 86, 200, 62, "vision", "dynamic head", "GLIPv2DyConv"),
        box(
            460,
            184,
            200,
            82,
            "fusion",
            "cross-attention",
            "locations and tokens, both ways",
            "GLIPv2BiAttention (fusion.py)",
        ),
        box(460, 302, 200, 62, "text", "text layer", "GLIPv2FusedTextLayer"),
        arrow((380, 117), (458, 117)),
        arrow((380, 333), (458, 333)),
        arrow((530, 182), (530, 150)),
        arrow((590, 150), (590, 182)),
        arrow((530, 268), (530, 300)),
        arrow((590, 300), (590, 268)),
        text(708, 108, "O", 15, weight="bold"),
        text(708, 326, "P", 15, weight="bold"),
        # Tasks.
        box(760, 30, 340, 72, "task", "boxes", "box and centerness of each location", "GLIPv2DetectionHead"),
        box(
            760,
            122,
            340,
            72,
            "task",
            "S = O P\u1d40",
            "each location times each token: detection, grounding",
            "GLIPv2DetectionHead",
        ),
        box(760, 214, 340, 62, "task", "masks", "pixels of a box times tokens (mask_head.py)"),
        box(760, 296, 340, 62, "task", "answers and masked tokens", "predicted from the fused tokens"),
        box(
            760,
            378,
            340,
            72,
            "task",
            "captions",
            "token by token; image features do not depend on",
            "text, so they are computed once (caption_steps.py)",
        ),
        arrow((660, 117), (725, 117), (725, 66), (758, 66)),
        arrow((725, 117), (725, 150), (758, 150)),
        arrow((725, 150), (725, 240), (758, 240)),
        arrow((660, 333), (742, 333), (742, 170), (758, 170)),
        arrow((742, 258), (758, 258)),
        arrow((742, 327), (758, 327)),
        arrow((742, 333), (742, 414), (758, 414)),
        # Losses.
        box(190, 452, 190, 84, "loss", "L_inter", "regions and tokens of all", "images, before fusion"),
        box(440, 452, 240, 84, "loss", "L_loc + L_intra", "boxes, centerness and S", "against the annotations"),
        box(760, 474, 340, 62, "loss", "L_mlm", "masked tokens, predicted from image and text"),
        text(20, 490, "Losses of training", 14, anchor="start", weight="bold"),
        text(20, 510, "(losses.py)", 12, anchor="start"),
        arrow((425, 117), (425, 420), (340, 420), (340, 450), dashed=True),
        arrow((250, 378), (250, 450), dashed=True),
        "</svg>\n",
    ]
    return "\n".join(parts)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--output", type=OutputFile, default=OUTPUT, help="(default: docs/figures/model.svg)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = check_paths(parse_args(arguments))
    write_text(args.output, draw_model())


if __name__ == "__main__":
    run(main)
