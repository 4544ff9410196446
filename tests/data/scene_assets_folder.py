"""A small folder of scene assets made in the test: drawn shapes as object crops, coloured noise as backgrounds."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from transformers_glipv2.data.scenes.colours import PAINTS, named_colour, recolour_way

# Some known to the table of look-alikes, some not.
NOUNS = (
    *("apple", "chair", "armchair", "cup", "dog", "car", "scissors", "tent", "abacus", "volcano", "robot", "pyramid"),
    *("wizard", "comb", "drum", "kayak", "lantern", "yo-yo", "zeppelin", "quiver", "gazebo", "obelisk", "trowel"),
    *("easel", "dumbbell"),
)


def make_assets(folder: Path, object_crops: int = 4) -> Path:
    """Write `index.jsonl`, object crops and backgrounds in the layout of `examples/fetch_scene_assets.py`."""
    rng = np.random.default_rng(0)
    paints = list(PAINTS.values())
    entries = []
    for number, noun in enumerate(NOUNS):
        for version in range(1 if noun == "easel" else object_crops):
            file = f"object_crops/{noun}_{version}.png"
            image = _shape(number, paints[(number + version) % len(paints)])
            way, hue = recolour_way(image)
            entry = {
                "kind": "object_crop",
                "file": file,
                "noun": noun,
                "licence": "drawn",
                "recolour": way,
                "hue": hue,
            }
            entry["attributes"] = ["wooden"] if noun == "chair" else []
            entry["colour"] = named_colour(image)
            _save(image, folder / file)
            entries.append(entry)
    for number in range(4):
        file = f"backgrounds/{number}.jpg"
        noise = rng.integers(90, 160, (12, 16, 3), dtype=np.uint8)
        _save(Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC), folder / file)
        entries.append({"kind": "background", "file": file, "licence": "drawn", "nouns": ["volcano"]})
    (folder / "index.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def _shape(number: int, colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (60, 48 + number))
    draw = ImageDraw.Draw(image)
    box = (1, 1, image.width - 2, image.height - 2)
    if number % 3 == 0:
        draw.ellipse(box, fill=(*colour, 255))
    elif number % 3 == 1:
        draw.rounded_rectangle(box, radius=9, fill=(*colour, 255))
    else:
        draw.polygon([(30, 0), (59, image.height - 1), (0, image.height - 1)], fill=(*colour, 255))
    return image


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
