"""Few-shot training sets as the ODinW protocol samples them."""

import random
from collections import Counter
from collections.abc import Collection, Hashable, Sequence

from transformers.utils import logging

from transformers_glipv2.data.dataset import ImageDataset

logger = logging.get_logger(__name__)

# The protocol averages over these, and repeats few images so that an epoch is not over at once.
SEEDS = (3, 30, 300)
COPIES = {1: 8, 3: 4, 5: 2, 10: 1}


def few_shot(
    dataset: ImageDataset, shots: int, seed: int = 3, copies: int | None = None, empty_images: int = 0
) -> ImageDataset:
    """
    A part of a detection data set in which every class is in `shots` images or more.

    Args:
        dataset (`ImageDataset`): examples of kind "detection".
        shots (`int`): 1, 3, 5 or 10 in the protocol.
        seed (`int`, *optional*, defaults to 3): 3, 30 and 300 in the protocol.
        copies (`int`, *optional*): how often the images are repeated; by default 8, 4, 2, 1 for 1, 3, 5, 10 shots,
            and 1 for others.
        empty_images (`int`, *optional*, defaults to 0): so many images without objects are added, as negatives.

    Returns:
        `ImageDataset`: with the data set's classes, also those of which there is no image.

    Raises:
        ValueError: when a number is out of range.
    """
    copies = COPIES.get(shots, 1) if copies is None else copies
    if copies < 1 or empty_images < 0:
        raise ValueError(f"`copies` must be >= 1 and `empty_images` >= 0, got {copies} and {empty_images}.")
    classes = [set(record["objects"]["category"]) for record in dataset.records]
    image_ids = [record["image_id"] for record in dataset.records]
    chosen = few_shot_indices(classes, image_ids, shots, seed)
    found = Counter(name for index in chosen for name in classes[index])
    short = [name for name in dataset.class_names or () if found[name] < shots]
    if short:
        logger.warning(
            f"{len(short)} of {len(dataset.class_names or ())} classes are in fewer than {shots} images: "
            + ", ".join(f"{name} ({found[name]})" for name in short[:10])
        )
    empty = [index for index, names in enumerate(classes) if not names]
    chosen += sorted(random.Random(seed).sample(empty, min(empty_images, len(empty))))
    return dataset.select(chosen * copies)


def few_shot_indices(
    classes: Sequence[Collection[Hashable]], image_ids: Sequence[int | str], shots: int, seed: int
) -> list[int]:
    """
    Images chosen greedily: in shuffled order, one is taken when a class of it still lacks images.

    Args:
        classes (`Sequence[Collection]`): the classes in each image.
        image_ids (`Sequence`): images are ordered by them before the shuffle, so that the order of the file does not
            matter.
        shots (`int`): images wanted for each class.
        seed (`int`): of the shuffle; 0 leaves the order of ids, as in the original.

    Returns:
        `list[int]`: indices in the order in which they were taken.

    Raises:
        ValueError: when `shots` is below 1 or the lengths differ.
    """
    if shots < 1 or len(classes) != len(image_ids):
        raise ValueError(f"`shots` is {shots}, with {len(classes)} images and {len(image_ids)} ids; check the call.")
    order = sorted(range(len(classes)), key=lambda index: (isinstance(image_ids[index], str), image_ids[index]))
    if seed:
        random.Random(seed).shuffle(order)
    lacking = dict.fromkeys((name for names in classes for name in names), shots)
    chosen = []
    for index in order:
        if any(lacking[name] > 0 for name in classes[index]):
            chosen.append(index)
            for name in set(classes[index]):
                lacking[name] -= 1
    return chosen
