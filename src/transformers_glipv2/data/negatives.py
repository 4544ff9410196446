"""
Negatives of a small data set: what its classes are not, made of the images that are there.

A model that has only seen images with a class in them finds the class in every image. Two kinds of examples show it
what has no box: objects whose pieces are shuffled, which have the colours, textures and places of the class but not
its shape (negative data augmentation, Sinha et al., ICLR 2021), and other images in which none of the classes is.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from transformers_glipv2.data.dataset import ImageDataset

Example = dict[str, Any]
IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


class ScrambleObjects:
    """
    Shuffles the pieces of every object of an image and drops all boxes.

    Args:
        probability (`float`): of an example with objects.
        pieces (`int`, *optional*, defaults to 4): along each side of an object.

    Raises:
        ValueError: for a probability out of range or fewer than two pieces.
    """

    def __init__(self, probability: float, pieces: int = 4):
        if not 0 <= probability <= 1 or pieces < 2:
            raise ValueError(f"expected a probability in [0, 1] and 2 pieces or more, got {probability} and {pieces}.")
        self.probability = probability
        self.pieces = pieces

    def __call__(self, example: Example, rng: random.Random) -> Example:
        boxes = (example.get("objects") or {}).get("bbox", ())
        if example["kind"] != "detection" or not boxes or rng.random() >= self.probability:
            return example
        image = example["image"].copy()
        for box in boxes:
            _shuffle_pieces(image, box, self.pieces, rng)
        return {**example, "image": image, "objects": _without_objects(example["objects"])}


def _without_objects(objects: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    return {column: [] for column in objects}


def _shuffle_pieces(image: Image.Image, box: Sequence[float], pieces: int, rng: random.Random) -> None:
    """Shuffles the pieces of a box (x, y, width, height in pixels) in place; what is too small stays."""
    x, y = max(int(box[0]), 0), max(int(box[1]), 0)
    width = (min(round(box[0] + box[2]), image.width) - x) // pieces
    height = (min(round(box[1] + box[3]), image.height) - y) // pieces
    if width < 1 or height < 1:
        return
    corners = [(x + column * width, y + row * height) for row in range(pieces) for column in range(pieces)]
    crops = [image.crop((left, top, left + width, top + height)) for left, top in corners]
    rng.shuffle(crops)
    for crop, corner in zip(crops, corners, strict=True):
        image.paste(crop, corner)


def image_files(folder: str | Path) -> list[Path]:
    """
    The images of a folder and of folders in it, by name.

    Raises:
        FileNotFoundError: when there are none.
    """
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"there is no image in {folder}; negatives are images without the classes.")
    return files


def images_without_objects(folder: str | Path, class_names: Sequence[str]) -> ImageDataset:
    """
    Images in which none of some classes is, as detection examples without objects.

    Args:
        folder (`str` or `Path`): of images, also in folders of it.
        class_names (`Sequence[str]`): what the images are asked for.

    Raises:
        FileNotFoundError: when there are no images.
    """
    files = image_files(folder)
    empty: dict[str, list[Any]] = {"bbox": [], "category": [], "area": [], "iscrowd": []}
    records = [
        {"kind": "detection", "image_id": path.name, "image_path": str(path), "objects": empty} for path in files
    ]
    return ImageDataset(records, list(class_names))
