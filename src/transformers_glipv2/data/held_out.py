"""A part of the training images, held out to choose weights by: near-duplicates stay on one side."""

import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from transformers_glipv2.data.dataset import iterate_annotations
from transformers_glipv2.images.image_io import ImageFile, open_image

# Thumbnails of so many pixels a side; those of two images that look alike differ by less than so many of 255 grey
# levels on average. Neighbouring frames of a video and copies in other sizes and qualities are below it.
THUMBNAIL = 16
ALIKE = 6.0
# So many images are compared at most, which opens each and takes a minute or two; more are divided at random.
MAX_COMPARED = 50_000
_HASHES = 8  # rows of the hash; rows that agree make two images candidates


def held_out_indices(records: Sequence[Mapping[str, Any]], fraction: float, seed: int = 0) -> tuple[list[int], str]:
    """
    Which images to hold out.

    Images that look alike, and those that Roboflow made of one image (`NAME.rf.HASH.jpg`), are held out together or
    not at all, and of no class are all images held out. The choice depends on the names of the images, the seed and
    the images themselves, so it is the same for the same images in another format.

    Where too many images look alike for that (a fixed camera), or classes have too few images, the last ones by name
    are held out, which keeps all but two neighbouring frames of a video apart. More than `MAX_COMPARED` images are not
    compared.

    Args:
        records (`Sequence[Mapping]`): of an `ImageDataset`.
        fraction (`float`): of the images, in (0, 1).
        seed (`int`, *optional*, defaults to 0).

    Returns:
        `tuple[list[int], str]`: ascending indices, of two images or more at least one and not all; and how they were
        chosen, for a message.

    Raises:
        ValueError: when the fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` is {fraction}; it must be above 0 and below 1.")
    # Reading records takes time, so all is taken in one pass.
    sources, classes = [], []
    for source, categories, _ in iterate_annotations(records):
        sources.append(source)
        classes.append(tuple(set(categories)))
    names = [_name(source, index) for index, source in enumerate(sources)]
    how = "images that look alike kept together"
    if len(sources) > MAX_COMPARED:
        how = f"at random, as more than {MAX_COMPARED} images are not compared"
    groups = sorted(
        (sorted(group, key=names.__getitem__) for group in look_alike_groups(sources)),
        key=lambda group: names[group[0]],
    )
    random.Random(seed).shuffle(groups)
    target = max(1, round(fraction * len(records)))
    left = Counter(name for own in classes for name in own)
    held: list[int] = []
    for group in groups:
        own = Counter(name for index in group for name in classes[index])
        fits = len(held) + len(group) <= target and len(held) + len(group) < len(records)
        if fits and all(left[name] > count for name, count in own.items()):
            held += group
            left -= own
    if 2 * len(held) >= target:
        return sorted(held), how
    by_name = sorted(range(len(records)), key=names.__getitem__)
    return sorted(by_name[-target:] if len(records) > 1 else []), "the last by name, many images look alike"


def look_alike_groups(sources: Sequence[Any]) -> list[list[int]]:
    """
    The indices of images in groups of those that look alike; most groups hold one.

    Args:
        sources (`Sequence`): as `image_path` of records. More than `MAX_COMPARED` are compared by their names only.
    """
    parent = list(range(len(sources)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    pairs = _alike_pairs(_thumbnails(sources)) if len(sources) <= MAX_COMPARED else ()
    for one, other in (*pairs, *_same_source(sources)):
        parent[root(one)] = root(other)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(sources)):
        groups[root(index)].append(index)
    return list(groups.values())


def _name(source: Any, index: int) -> str:
    return os.path.basename(source) if isinstance(source, (str, Path)) else f"{index:09d}"


def _same_source(sources: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Pairs of images that Roboflow made of one image by augmentation."""
    first: dict[str, int] = {}
    for index, source in enumerate(sources):
        match = re.fullmatch(r"(.+)\.rf\.\w+\.\w+", _name(source, index))
        if match and first.setdefault(match[1], index) != index:
            yield first[match[1]], index


def _alike_pairs(thumbnails: np.ndarray) -> Iterator[tuple[int, int]]:
    """
    Pairs whose thumbnails differ little. Compared are those that agree in a row of their difference hash (which of
    two neighbouring pixels is brighter), each with the first ones of its kind.
    """
    grey = thumbnails.astype(np.float32)
    step = THUMBNAIL // _HASHES
    small = grey.reshape(-1, _HASHES, step, _HASHES, step).mean((2, 4))
    rows = np.packbits(small[:, :, 1:] > small[:, :, :-1], axis=2)[..., 0]
    # Two rows together; one has 128 values only.
    keys = rows[:, ::2].astype(np.int32) * 256 + rows[:, 1::2]
    for column in keys.T:
        kinds: dict[int, list[int]] = defaultdict(list)
        for index in np.flatnonzero(~np.isnan(grey[:, 0, 0])):
            kind = kinds[int(column[index])]
            differences = np.abs(grey[kind] - grey[index]).mean((1, 2)) if kind else np.empty(0)
            alike = np.flatnonzero(differences < ALIKE)
            if len(alike):
                yield kind[alike[0]], int(index)
            elif len(kind) < 256:
                kind.append(int(index))


def _thumbnails(sources: Sequence[Any]) -> np.ndarray:
    """Grey thumbnails `(images, side, side)`, NaN where an image cannot be read."""
    with ThreadPoolExecutor() as pool:
        bar = tqdm(pool.map(_thumbnail, sources), "comparing images", len(sources), delay=5, leave=False)
        found = list(bar)
    return np.stack(found) if found else np.empty((0, THUMBNAIL, THUMBNAIL), dtype=np.float32)


def _thumbnail(source: Any) -> np.ndarray:
    try:
        image = _small_grey(source() if callable(source) else source)
        return np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)
    except (OSError, ValueError, Image.DecompressionBombError):
        return np.full((THUMBNAIL, THUMBNAIL), np.nan, dtype=np.float32)


def _small_grey(source: ImageFile) -> Image.Image:
    """The image in grey; of a JPEG an eighth of its size is decoded, which is all that is needed."""
    if isinstance(source, (str, Path)):
        with Image.open(source) as image:
            if image.format == "JPEG":
                image.draft("L", (8 * THUMBNAIL, 8 * THUMBNAIL))
                return image.convert("L")
    return open_image(source).convert("L")
