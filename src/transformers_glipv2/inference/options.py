"""The arguments that every way to call a model shares, checked in one place."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..post_processing import check_count, check_fraction

# Of calls about labels, about their masks, and about sentences.
SHARED_OPTIONS = ("threshold", "pre_nms_threshold", "nms_threshold", "batch_size", "num_workers", "size", "progress")
LABEL_OPTIONS = (*SHARED_OPTIONS, "agnostic_nms", "max_detections", "labels_per_prompt", "prompts_per_batch")
MASK_OPTIONS = (*LABEL_OPTIONS, "mask_threshold", "return_rle")
_EDGES = ({"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"height", "width"})


def check_names(names: Collection[str], known: Collection[str], where: str) -> None:
    """Raises TypeError, with the nearest known name, for an argument that `where` does not take."""
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{nearest[0]}`?" if nearest else f"it takes {', '.join(sorted(known))}."
            raise TypeError(f"{where} takes no argument `{name}`; {hint}")


def check_size(size: Any) -> None:
    """Raises TypeError or ValueError unless `size` is what the image processor resizes to."""
    if size is None:
        return
    if not isinstance(size, Mapping):
        raise TypeError(f'`size` must be a dict such as {{"shortest_edge": 800, "longest_edge": 1333}}, got {size!r}.')
    if set(size) not in _EDGES:
        raise ValueError(
            f'`size` must have "shortest_edge" (and optionally "longest_edge"), or "height" and "width"; got '
            f"{dict(size)}."
        )
    for name, pixels in size.items():
        check_count(pixels, f'size["{name}"]')


def check_batch_size(value: Any) -> None:
    """Raises TypeError or ValueError unless `value` is "auto" or a whole number of at least 1."""
    if isinstance(value, str) and value != "auto":
        raise ValueError(f'`batch_size` must be "auto" or a whole number of at least 1, got {value!r}.')
    if value != "auto":
        check_count(value, "batch_size")


def check_switch(value: Any, name: str) -> None:
    """Raises TypeError unless `value` is `True` or `False`."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {type(value).__name__} {value!r}.")


@dataclass(frozen=True)
class DetectorOptions:
    """
    Options of a [`Detector`]; each of its calls takes those that apply to it, for that call.

    Args:
        threshold (`float`, defaults to 0.05): the lowest score that is returned, in [0, 1]. Scores are the root of
            label score x centerness.
        pre_nms_threshold (`float`, *optional*): label scores (before centerness) above this make candidates; by
            default `config.score_threshold_before_nms`, 0.05.
        nms_threshold (`float`, defaults to 0.6): IoU above which the weaker of two boxes of a label is suppressed.
        agnostic_nms (`bool`, defaults to `False`): suppress across labels, so that one object gets one label. Where
            labels need several prompts, each prompt suppresses first, then all that they kept.
        max_detections (`int`, defaults to 100): boxes of an image at most, over all labels; ties at the cut all stay.
            `None` keeps the best 300 of each prompt and cuts no more, as fixed AP wants.
        labels_per_prompt (`int`, *optional*): labels of a prompt at most; by default as many as fit `max_text_length`.
        prompts_per_batch (`int`, *optional*): prompts of an image in one forward pass; by default 1 on a CPU, where
            more only cost memory, else 8.
        batch_size (`int` or `"auto"`, defaults to 1): images in one forward pass. Only images whose resized and padded
            sizes are equal go together, so that no image's results depend on another; results come in the order of the
            images. `"auto"` doubles it until a GPU's memory is full, 32 at most; on a CPU it follows from the threads.
        num_workers (`int`, *optional*): threads that open and resize images while the model works; by default none on
            a CPU, whose cores the model takes, else up to 8.
        size (`Mapping[str, int]`, *optional*): of the resized images, in place of the image processor's own.
        mask_threshold (`float`, defaults to 0.5): on the probability of a pixel of a mask; equal is outside.
        return_rle (`bool`, defaults to `True`): masks as COCO's run lengths in place of arrays.
        progress (`bool`, *optional*): show a progress bar; by default where there is much to do.

    Raises:
        TypeError, ValueError: for a value of a wrong type or out of range, naming the argument.
    """

    threshold: float = 0.05
    pre_nms_threshold: float | None = None
    nms_threshold: float = 0.6
    agnostic_nms: bool = False
    max_detections: int | None = 100
    labels_per_prompt: int | None = None
    prompts_per_batch: int | None = None
    batch_size: int | str = 1
    num_workers: int | None = None
    size: Mapping[str, int] | None = None
    mask_threshold: float = 0.5
    return_rle: bool = True
    progress: bool | None = None

    def __post_init__(self):
        for name in ("threshold", "nms_threshold", "mask_threshold"):
            check_fraction(getattr(self, name), name)
        if self.pre_nms_threshold is not None:
            check_fraction(self.pre_nms_threshold, "pre_nms_threshold")
        check_batch_size(self.batch_size)
        if self.num_workers not in (None, 0):
            check_count(self.num_workers, "num_workers")
        for name in ("max_detections", "labels_per_prompt", "prompts_per_batch"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name)
        for name in ("agnostic_nms", "return_rle"):
            check_switch(getattr(self, name), name)
        if self.progress is not None:
            check_switch(self.progress, "progress")
        check_size(self.size)

    def updated(
        self, changes: Mapping[str, Any], known: Collection[str] = MASK_OPTIONS, where: str = "Detector"
    ) -> "DetectorOptions":
        """
        These options with some changed.

        Args:
            changes: names and values.
            known: the names that may be changed.
            where: what is called, for the error.

        Raises:
            TypeError: for another name, with the nearest known one.
        """
        check_names(changes, known, where)
        return dataclasses.replace(self, **changes)


__all__ = ["LABEL_OPTIONS", "MASK_OPTIONS", "SHARED_OPTIONS", "DetectorOptions", "check_names"]
