"""Mosaics of images that are sorted by class in folders (as Caltech 101), as detection examples."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from transformers_glipv2.data.scenes.assets import ImageCache
from transformers_glipv2.data.scenes.words import related_nouns
from transformers_glipv2.data.seeding import derive_random

# Folders of Caltech 101 whose names are no plain singular words; `None`: the object fills too little of the image.
CALTECH_NAMES = {
    "Faces": None,
    "Faces_easy": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "car",
    "cougar_body": "cougar",
    "cougar_face": "cougar",
    "crocodile_head": "crocodile",
    "flamingo_head": "flamingo",
    "garfield": "cartoon cat",
    "snoopy": "cartoon dog",
    "hawksbill": "sea turtle",
    "headphone": "headphones",
    "water_lilly": "water lily",
    "euphonium": "tuba",
    "ketch": "sailboat",
    "schooner": "sailing ship",
    "ewer": "pitcher",
    "gerenuk": "antelope",
    "okapi": "okapi",
    "cellphone": "mobile phone",
}
DEFAULT_TILES = {1: 0.25, 4: 0.45, 9: 0.3}
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class MosaicScenes(Dataset):
    """
    Endless mosaics of 1, 4 or 9 images: `mosaics[i]` depends on the seed, the split and `i` alone.

    Nobody drew boxes for such images. Where the border of an image is of one colour, its box is around everything
    else; where it is not, the object is taken to fill the image but for a margin. There is no `len`: give
    `MixtureDataset` a length.

    Args:
        folder (`str` or `Path`): one folder of images a class.
        split (`str`, *optional*, defaults to `"train"`): or "val": a fifth of the images.
        seed (`int`, *optional*, defaults to 0).
        size (`int`, *optional*, defaults to 384): longer side of a mosaic in pixels.
        tiles (`Mapping[int, float]`, *optional*): how often which number of tiles (a square number) is taken.
        background_folder (`str`, *optional*, defaults to `"BACKGROUND_Google"`): the folder, where there is one, whose
            images show none of the classes; they fill some tiles and are the background of some mosaics.
        names (`Mapping[str, str | None]`, *optional*): names of folders that do not say it themselves, `None` to leave
            a folder out; by default those of Caltech 101.
        margin (`float`, *optional*, defaults to 0.04): fraction of an image's sides taken off its box where the
            border says nothing.
        cache_megabytes (`int`, *optional*, defaults to 128): of decoded images, in each worker.

    Raises:
        ValueError: when an argument is out of range or the folder holds no class folders.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        seed: int = 0,
        size: int = 384,
        tiles: Mapping[int, float] | None = None,
        background_folder: str = "BACKGROUND_Google",
        names: Mapping[str, str | None] = CALTECH_NAMES,
        margin: float = 0.04,
        cache_megabytes: int = 128,
    ):
        tiles = dict(DEFAULT_TILES if tiles is None else tiles)
        if split not in ("train", "val"):
            raise ValueError(f'`split` is {split!r}; choose "train" or "val".')
        if (
            not tiles
            or any(round(count**0.5) ** 2 != count or count < 1 for count in tiles)
            or min(tiles.values()) < 0
        ):
            raise ValueError(f"`tiles` must give a fraction to each square number of tiles, got {tiles}.")
        if not 0 <= margin < 0.5 or size < 64:
            raise ValueError(f"`margin` must be in [0, 0.5) and `size` at least 64, got {margin} and {size}.")
        self.folder, self.split, self.seed, self.size = Path(folder), split, seed, size
        self.tiles, self.margin = tiles, margin
        self.images: dict[str, list[str]] = {}
        self.backgrounds: list[str] = []
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder; pass the one that holds a folder of images a class.")
        for class_folder in sorted(path for path in self.folder.iterdir() if path.is_dir()):
            files = _split_files(class_folder, split)
            if class_folder.name == background_folder:
                self.backgrounds = files
                continue
            name = names.get(class_folder.name, class_name(class_folder.name))
            if files and name is not None:
                self.images.setdefault(name, []).extend(files)
        if not self.images:
            raise ValueError(f"{self.folder} holds no folders with images of the split {split!r}.")
        self.class_names = sorted(self.images)
        self.related = related_nouns(self.class_names)
        self.cache = ImageCache(cache_megabytes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            raise IndexError(f"mosaic {index}: the mosaics are numbered from 0 and have no end.")
        rng = derive_random("mosaic", self.split, self.seed, index)
        rows = round(rng.choices(list(self.tiles), list(self.tiles.values()))[0] ** 0.5)
        canvas = self._canvas(rng)
        boxes: list[list[float]] = []
        categories: list[str] = []
        for tile in range(rows * rows):
            if self.backgrounds and rng.random() < 0.1:
                self._put(canvas, rng.choice(self.backgrounds), tile, rows, rng)
                continue
            # Related classes ("cougar" and "wild cat") may be called by each other's names.
            free = [name for name in self.class_names if not self.related[name] & set(categories)]
            if not free:
                continue
            name = rng.choice(free)
            boxes.append(self._put(canvas, rng.choice(self.images[name]), tile, rows, rng))
            categories.append(name)
        out = set(categories).union(*(self.related[name] for name in categories))
        return {
            "image": canvas,
            "image_id": f"{self.split}-{self.seed}-{index}",
            "kind": "detection",
            "labels": self.class_names,
            "negative_labels": [name for name in self.class_names if name not in out],
            "objects": {"bbox": boxes, "category": categories, "area": [w * h for _, _, w, h in boxes]},
        }

    def _canvas(self, rng: random.Random) -> Image.Image:
        short = rng.randint(round(0.75 * self.size), self.size)
        size = (self.size, short) if rng.random() < 0.6 else (short, self.size)
        if self.backgrounds and rng.random() < 0.4:
            return ImageOps.fit(self.cache.get(self.folder / rng.choice(self.backgrounds), "RGB"), size)
        return Image.new("RGB", size, tuple(rng.randint(0, 255) for _ in range(3)))

    def _put(self, canvas: Image.Image, file: str, tile: int, rows: int, rng: random.Random) -> list[float]:
        """Paste an image into its tile; gives the box of what it shows."""
        image = self.cache.get(self.folder / file, "RGB")
        x1, y1, x2, y2 = content_box(image, self.margin)
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
            x1, x2 = image.width - x2, image.width - x1
        cell_width, cell_height = canvas.width / rows, canvas.height / rows
        scale = min(cell_width / image.width, cell_height / image.height) * rng.uniform(0.65, 1)
        width, height = max(8, int(image.width * scale)), max(8, int(image.height * scale))
        x = int(tile % rows * cell_width + rng.uniform(0, max(0.0, cell_width - width)))
        y = int(tile // rows * cell_height + rng.uniform(0, max(0.0, cell_height - height)))
        canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (x, y))
        sx, sy = width / image.width, height / image.height
        return [x + x1 * sx, y + y1 * sy, (x2 - x1) * sx, (y2 - y1) * sy]


def class_name(folder: str) -> str:
    """Words from a folder's name: "grand_piano" is "grand piano"."""
    return " ".join(folder.replace("_", " ").replace("-", " ").lower().split())


def content_box(image: Image.Image, margin: float) -> tuple[float, float, float, float]:
    """
    The box of the object in an image, as far as the image's border shows it.

    Args:
        image (`PIL.Image.Image`): RGB.
        margin (`float`): fraction of the sides taken off where the border is not of one colour.

    Returns:
        `tuple[float, float, float, float]`: x1, y1, x2, y2 in pixels.
    """
    pixels = np.asarray(image, dtype=np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(border, axis=0)
    if (np.abs(border - ground).max(axis=1) <= 12).mean() >= 0.9:
        other = np.abs(pixels - ground).max(axis=2) > 28
        # Single specks are no part of the object.
        columns, rows = (np.flatnonzero(other.sum(axis=axis) >= 2) for axis in (0, 1))
        if len(columns) > 0.2 * image.width and len(rows) > 0.2 * image.height:
            return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
    dx, dy = margin * image.width, margin * image.height
    return dx, dy, image.width - dx, image.height - dy


def _split_files(class_folder: Path, split: str) -> list[str]:
    """The images of a split, relative to the root: every fifth, in an order drawn from the class, is for val."""
    files = sorted(path.name for path in class_folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    derive_random("mosaic split", class_folder.name).shuffle(files)
    chosen: Sequence[str] = [file for index, file in enumerate(files) if (index % 5 == 4) == (split == "val")]
    return [f"{class_folder.name}/{file}" for file in chosen]
