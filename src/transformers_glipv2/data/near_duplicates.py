"""Images that look much alike, by perceptual hashes, and hold-outs that do not cut such groups apart."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from transformers_glipv2.data.seeding import derive_random

_SIDE, _KEPT = 32, 8


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """
    A hash that changes little where an image is scaled, compressed or slightly brighter.

    Args:
        image (`PIL.Image.Image`): of any mode and size.

    Returns:
        `np.ndarray` of shape `(64,)`: bool, which of the 8 x 8 lowest cosine frequencies of the grey image of 32 x 32
        pixels are above their median.
    """
    pixels = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    frequencies = np.arange(_KEPT)[:, None] * (2 * np.arange(_SIDE)[None] + 1) * np.pi / (2 * _SIDE)
    basis = np.cos(frequencies)
    low = (basis @ pixels @ basis.T).ravel()
    return low > np.median(low[1:])


def near_duplicate_groups(hashes: Sequence[np.ndarray], distance: int = 12) -> list[list[int]]:
    """
    Groups in which every image is near to some other.

    Args:
        hashes (`Sequence[np.ndarray]`): of `perceptual_hash`.
        distance (`int`, *optional*, defaults to 12): bits that two near-duplicates differ in, at most.

    Returns:
        `list[list[int]]`: indices, each in one group; groups by their first index.
    """
    if not len(hashes):
        return []
    bits = np.asarray(hashes, dtype=np.int32)
    ones = bits.sum(axis=1)
    parent = list(range(len(bits)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index in range(len(bits)):
        differing = ones[index] + ones[index + 1 :] - 2 * (bits[index + 1 :] @ bits[index])
        for other in np.flatnonzero(differing <= distance) + index + 1:
            first, second = sorted((root(index), root(int(other))))
            parent[second] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(bits)):
        groups[root(index)].append(index)
    return list(groups.values())


def hold_out(groups: Sequence[Sequence[int]], fraction: float = 0.1, seed: int = 0) -> list[int]:
    """
    Whole groups, drawn at random, that are at most a fraction of all images.

    Args:
        groups (`Sequence[Sequence[int]]`): of `near_duplicate_groups`.
        fraction (`float`, *optional*, defaults to 0.1): of the images; a group that would exceed it is passed over.
        seed (`int`, *optional*, defaults to 0).

    Returns:
        `list[int]`: sorted indices.

    Raises:
        ValueError: when the fraction is not between 0 and 1, or no group is small enough for it.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` is {fraction}; expected a number between 0 and 1.")
    room = round(fraction * sum(len(group) for group in groups))
    order = list(groups)
    derive_random("hold out", seed).shuffle(order)
    chosen: list[int] = []
    for group in order:
        if len(chosen) + len(group) <= room:
            chosen.extend(group)
    if not chosen:
        raise ValueError(
            f"each of the {len(groups)} groups of near-duplicates is more than {fraction:g} of the images; hold out a "
            "larger fraction, or take a smaller distance."
        )
    return sorted(chosen)
