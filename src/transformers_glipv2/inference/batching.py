"""Images in batches of equal size, from any iterable, in bounded memory and with results in the images' order."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import ProcessorMixin
from transformers.utils import ModelOutput

from ..boxes import to_device
from ..image_processing_glipv2 import ImageSource, flatten_images, get_image_size
from ..layers.input_checks import image_sizes_of
from ..prompts import check_labels, check_sentence, is_list

Item = TypeVar("Item")
Made = TypeVar("Made")

# Images wait for others of their size until this many batches were read since.
WINDOW = 4
# A progress bar shows by default from so much work on.
LONG = 10


@dataclass
class PreparedImage:
    """
    One image as the model takes it, and what is asked of it.

    Attributes:
        pixel_values (`torch.FloatTensor` of shape `(1, 3, height, width)`): resized and padded as it would be alone.
        pixel_mask (`torch.LongTensor` of shape `(1, height, width)`): 1 for the image, 0 for padding.
        target_size (`tuple[int, int]`): (height, width) in pixels to measure boxes and masks in.
        asked: the prompts of its labels, or its sentence.
    """

    pixel_values: Tensor
    pixel_mask: Tensor
    target_size: tuple[int, int]
    asked: Any = None

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the resized image, without its padding; the mask is on the CPU."""
        height, width = image_sizes_of(self.pixel_mask)[0].tolist()
        return height, width


def prepare_image(
    processor: ProcessorMixin,
    image: Any,
    size: Mapping[str, int] | None = None,
    target_size: tuple[int, int] | None = None,
    asked: Any = None,
) -> PreparedImage:
    """An image through the image processor of `processor`; `target_size` is by default the image's own."""
    options = {} if size is None else {"size": dict(size)}
    inputs = processor.image_processor(image, return_tensors="pt", **options)
    return PreparedImage(inputs["pixel_values"], inputs["pixel_mask"], target_size or get_image_size(image), asked)


def prepare_images(
    processor: ProcessorMixin, images: Iterable[Any], size: Mapping[str, int] | None = None, num_workers: int = 0
) -> Iterator[PreparedImage]:
    """
    Images, opened and prepared as they are needed; with `num_workers` threads up to twice as many ahead.

    Args:
        processor: its image processor also says which files and URLs may be opened.
        images: image objects, paths, addresses, or batches of images.
        size: as of [`prepare_image`].
        num_workers: threads; decoding and resizing leave Python to others meanwhile.
    """

    def prepare(image: Any) -> list[PreparedImage]:
        return [prepare_image(processor, single, size) for single in processor.image_processor.fetch_images(image)]

    for several in map_ahead(prepare, images, num_workers):
        yield from several


def map_ahead(function: Callable[[Item], Made], items: Iterable[Item], num_workers: int) -> Iterator[Made]:
    """
    `map`, by `num_workers` threads that work up to twice as many items ahead; in this thread where there are none.
    An item that is ready does not wait for later ones to be read.
    """
    if not num_workers:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(num_workers)
    pending: deque[Future[Made]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            while pending and (len(pending) > 2 * num_workers or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each made by another thread while the one before is worked with."""
    iterator, end = iter(items), object()
    pool = ThreadPoolExecutor(1)
    try:
        following: Future[Any] = pool.submit(next, iterator, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, iterator, end)
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def group_by_shape(
    prepared: Iterable[PreparedImage], batch_size: int | Callable[[int, int], int]
) -> Iterator[tuple[list[int], list[PreparedImage]]]:
    """
    Batches of images whose padded sizes are equal.

    An image alone is padded like this too, so its results are the same as in any of these batches. At most `WINDOW`
    batches of images wait at a time.

    Args:
        prepared: read as needed.
        batch_size: images of a batch at most; or a function that gives it for a height and width.

    Yields:
        The images' indices and the images.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, PreparedImage]]] = {}
    for index, image in enumerate(prepared):
        shape = tuple(image.pixel_values.shape)
        most = batch_size if isinstance(batch_size, int) else batch_size(*shape[2:])
        group = waiting.setdefault(shape, [])
        group.append((index, image))
        if len(group) >= most:
            yield _batch(waiting.pop(shape))
        # Groups are in the order of their first image, so the first one waits longest.
        if waiting:
            oldest = next(iter(waiting))
            if index - waiting[oldest][0][0] + 1 >= WINDOW * most:
                yield _batch(waiting.pop(oldest))
    for group in waiting.values():
        yield _batch(group)


def _batch(group: list[tuple[int, PreparedImage]]) -> tuple[list[int], list[PreparedImage]]:
    indices, images = zip(*group, strict=True)
    return list(indices), list(images)


def in_order(batches: Iterable[tuple[list[int], list[Any]]]) -> Iterator[Any]:
    """Results of batches, with their indices, one by one in the order of their indices."""
    ready: dict[int, Any] = {}
    following = 0
    for indices, results in batches:
        ready.update(zip(indices, results, strict=True))
        while following in ready:
            yield ready.pop(following)
            following += 1


@torch.no_grad()
def stack_images(images: list[PreparedImage], pin: bool = False) -> tuple[Tensor, Tensor]:
    """
    `pixel_values` and `pixel_mask` of images of one size, on the CPU; with `pin` in memory that a GPU reads by itself.
    """
    stacked = []
    for parts in ([image.pixel_values for image in images], [image.pixel_mask for image in images]):
        shape = (len(images), *parts[0].shape[1:])
        stacked.append(torch.cat(parts, out=torch.empty(shape, dtype=parts[0].dtype, pin_memory=pin)))
    return stacked[0], stacked[1]


def select_images(image_features: ModelOutput, indices: list[int]) -> ModelOutput:
    """Some images' part of what `model.get_image_features` gives for a batch."""
    own_shapes = image_features.own_shapes
    index = to_device(indices, image_features.image_sizes.device)
    return type(image_features)(
        feature_maps=tuple(level[index] for level in image_features.feature_maps),
        image_sizes=image_features.image_sizes[index],
        own_shapes=None if own_shapes is None else [own_shapes[index] for index in indices],
    )


# Arguments -----------------------------------------------------------------------------------------------------------


def single_images(images: Any) -> list[ImageSource] | Iterable[ImageSource]:
    """
    One image each; files stay unread. Iterables other than lists are left to be consumed.

    Raises:
        TypeError, ValueError: for no images, or something that is none.
    """
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("`images` is empty; pass at least one image.")
        return list(images)
    if isinstance(images, str | os.PathLike | bytes):
        return [images]
    if not isinstance(images, Iterable) or hasattr(images, "ndim"):
        return flatten_images(images)  # one image, or an array of several
    return images


def one_each(
    values: list[Any] | tuple[Any, ...], images: list[Any] | Iterable[Any], name: str
) -> Callable[[int], Any]:
    """
    The value of the image at an index, of values for each.

    Raises:
        ValueError: for another number of values than images; where the number of images is unknown, the function that
            is returned raises it.
    """

    def wrong(count: int | str) -> ValueError:
        return ValueError(f"`{name}` has {len(values)} entries for {count} images; pass one for each.")

    if isinstance(images, list) and len(images) != len(values):
        raise wrong(len(images))

    def value_of(index: int) -> Any:
        if index >= len(values):
            raise wrong("more")
        return values[index]

    return value_of


def labels_for(
    images: list[Any] | Iterable[Any], text_labels: Any
) -> tuple[Callable[[int], tuple[str, ...]], list[tuple[str, ...]]]:
    """
    The labels of the image at an index, and all lists of labels.

    Raises:
        TypeError, ValueError: for wrong labels, or another number of lists of labels than images.
    """
    if not (is_list(text_labels) and text_labels and all(is_list(labels) for labels in text_labels)):
        check_labels(text_labels, "text_labels")
        shared = tuple(text_labels)
        return lambda index: shared, [shared]
    for index, labels in enumerate(text_labels):
        check_labels(labels, f"text_labels[{index}]")
    lists = [tuple(labels) for labels in text_labels]
    return one_each(lists, images, "text_labels"), lists


def sentences_for(
    images: list[Any] | Iterable[Any], sentences: Any, name: str, empty: bool = False
) -> Callable[[int], str]:
    """
    The sentence of the image at an index.

    Args:
        images: as `single_images` gives them.
        sentences: one for all images, or one for each.
        name: of the argument, for errors.
        empty: whether a sentence may be empty.

    Raises:
        TypeError, ValueError: for something else than a string or a list of them, an empty one, or another number.
    """
    if not isinstance(sentences, str) and not is_list(sentences):
        raise TypeError(
            f"`{name}` must be a string, or a list with one for each image, got {type(sentences).__name__} "
            f"{sentences!r}."
        )
    single = isinstance(sentences, str)
    for index, sentence in enumerate([sentences] if single else sentences):
        if not (empty and sentence == ""):
            check_sentence(sentence, name if single else f"{name}[{index}]")
    if single:
        return lambda index: sentences
    return one_each(list(sentences), images, name)


# Progress ------------------------------------------------------------------------------------------------------------


class Progress:
    """A tqdm bar that shows itself only where the work is long; `total` is `None` where it is unknown."""

    def __init__(self, progress: bool | None, total: int | None, unit: str = "image"):
        show = (total is None or total >= LONG) if progress is None else progress
        self.bar = tqdm(total=total, desc="inference", unit=unit, disable=not show)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def update(self, count: int = 1) -> None:
        """Counts work as done."""
        self.bar.update(count)


__all__ = [
    "PreparedImage",
    "Progress",
    "group_by_shape",
    "in_order",
    "labels_for",
    "map_ahead",
    "one_ahead",
    "one_each",
    "prepare_image",
    "prepare_images",
    "select_images",
    "sentences_for",
    "single_images",
    "stack_images",
]
