"""Plots of a run: losses, average precision, confusion of classes, and sample predictions, as PNG files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging

from transformers_glipv2.data.files import replaced_file
from transformers_glipv2.inference.drawing import DrawnObject, draw

logger = logging.get_logger(__name__)

# Classes of a confusion matrix whose cells have room for their numbers, and objects of a sample that are drawn.
MAX_NUMBERED, MAX_DRAWN = 25, 30
# Of the sheet of samples, in pixels.
SAMPLE_HEIGHT, SAMPLE_GAP, TITLE_HEIGHT = 260, 8, 24


def has_matplotlib() -> bool:
    """Whether plots can be drawn; warns, with what to install, where they cannot."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        logger.warning("no plots: matplotlib is missing; `pip install transformers-glipv2[train]`")
        return False
    return True


def read_curves(log: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The lines of a training log: those with losses, and those of evaluations."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    return [line for line in lines if "loss" in line], [line for line in lines if "eval_AP" in line]


def plot_losses(lines: Sequence[Mapping[str, float]], file: Path) -> None:
    """The total loss and its parts over the steps."""
    figure, axes = _figure(7, 4)
    names = [name for name in lines[0] if name == "loss" or name.startswith("loss_")]
    for name in names:
        steps = [line["step"] for line in lines if name in line]
        values = [line[name] for line in lines if name in line]
        label = "total" if name == "loss" else name.removeprefix("loss_").replace("_", " ")
        axes.plot(steps, values, label=label, linewidth=2 if name == "loss" else 1)
    axes.set(title="Training loss", xlabel="step", ylabel="loss", ylim=(0, None), xlim=(0, None))
    axes.legend()
    _save(figure, file)


def plot_precision(lines: Sequence[Mapping[str, float]], best_step: int | None, split: str, file: Path) -> None:
    """AP, AP50 and AP75 of the evaluations over the steps, and which weights were kept."""
    figure, axes = _figure(7, 4)
    for name in ("AP50", "AP", "AP75"):
        axes.plot([line["step"] for line in lines], [line[f"eval_{name}"] for line in lines], marker="o", label=name)
    if best_step is not None:
        axes.axvline(best_step, color="grey", linestyle="--", label=f"kept: step {best_step}")
    axes.set(title=f"Average precision on {split}", xlabel="step", ylabel="average precision (%)", ylim=(0, 103))
    axes.set_xlim(left=0)
    axes.legend()
    _save(figure, file)


def plot_confusion(matrix: np.ndarray, names: Sequence[str], threshold: float, split: str, file: Path) -> None:
    """
    A confusion matrix, each row in fractions of its class.

    Args:
        matrix (`np.ndarray` of shape `(classes + 1, classes + 1)`): as `confusion_matrix` gives it.
        names (`Sequence[str]`): of the classes.
        threshold (`float`): of the boxes, for the title.
        split (`str`): for the title.
        file (`Path`): PNG.
    """
    side = min(4 + 0.45 * len(names), 20)
    figure, axes = _figure(side + 1.5, side)
    axes.grid(False)
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="fraction of the row")
    places = range(len(matrix))
    axes.set_xticks(places, [*names, "not found"], rotation=45, ha="right")
    axes.set_yticks(places, [*names, "background"])
    if len(names) <= MAX_NUMBERED:
        for row in places:
            for column in places:
                if matrix[row, column]:
                    color = "white" if fractions[row, column] > 0.5 else "black"
                    axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color)
    axes.set(title=f"Boxes on {split} with a score above {threshold:.2f}", xlabel="found as", ylabel="is")
    _save(figure, file)


def draw_samples(
    samples: Sequence[tuple[Image.Image, Sequence[DrawnObject], Sequence[DrawnObject]]], file: Path
) -> None:
    """
    Images with what is in them on the left and what the model finds beside it, two such pairs a row.

    Args:
        samples: each an image, its objects, and what was found.
        file (`Path`): PNG.
    """
    pairs = []
    for image, truth, found in samples:
        both = [draw(image, objects[:MAX_DRAWN]) for objects in (truth, found)]
        scale = SAMPLE_HEIGHT / image.height
        both = [one.resize((max(1, round(one.width * scale)), SAMPLE_HEIGHT)) for one in both]
        pair = Image.new("RGB", (2 * both[0].width + SAMPLE_GAP, SAMPLE_HEIGHT + TITLE_HEIGHT), "white")
        for left, one, title in zip((0, both[0].width + SAMPLE_GAP), both, ("annotated", "found"), strict=True):
            _write_title(pair, title, left)
            pair.paste(one, (left, TITLE_HEIGHT))
        pairs.append(pair)
    rows = [pairs[start : start + 2] for start in range(0, len(pairs), 2)]
    width = max(sum(pair.width + 3 * SAMPLE_GAP for pair in row) for row in rows)
    height = SAMPLE_HEIGHT + TITLE_HEIGHT + SAMPLE_GAP
    sheet = Image.new("RGB", (width, len(rows) * height + SAMPLE_GAP), "white")
    for index, row in enumerate(rows):
        left = SAMPLE_GAP
        for pair in row:
            sheet.paste(pair, (left, SAMPLE_GAP + index * height))
            left += pair.width + 3 * SAMPLE_GAP
    with replaced_file(file) as temporary:
        sheet.save(temporary, format="png")


def _write_title(sheet: Image.Image, text: str, x: int) -> None:
    from PIL import ImageDraw, ImageFont

    ImageDraw.Draw(sheet).text((x, 0), text, fill="black", font=ImageFont.load_default(18))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # Without pyplot: no window system is asked for, and no figure stays in memory.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, file: Path) -> None:
    with replaced_file(file) as temporary:
        figure.savefig(temporary, format="png")
