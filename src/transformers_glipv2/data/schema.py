"""One schema for every data set: what a row holds, how it is checked, and what is told about bad annotations.

A row is a plain dict of one image:

    image     `PIL.Image.Image`, RGB
    image_id  `int` or `str`
    kind      "detection", "grounding", "caption" or "vqa"
    labels    detection: the names of the classes that were looked for in this image
    negative_labels   optional; detection: the labels known to be absent, where the others are only unknown (LVIS)
    text      grounding, caption: the sentence
    question, answers   vqa: the question and the annotators' answers
    objects   columns of equal length, one entry a box:
        bbox             [x, y, width, height] in pixels of the image, x and y from the left top corner
        category         detection: the class name (an index into `labels` is taken too)
        phrase           optional; grounding: the words that the box belongs to
        tokens_positive  grounding: character spans [[start, end), ...] into `text`
        segmentation     optional; COCO polygons, COCO RLE, a (height, width) boolean array, or None for "no mask"
        iscrowd          optional; 1 where the box covers a crowd
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from transformers_glipv2.data.masks import mask_problem

logger = logging.get_logger(__name__)

KINDS = ("detection", "grounding", "caption", "vqa")

PROBLEMS = {
    "not_a_number": "a box with fewer or more than 4 numbers, or with one that is NaN or infinite",
    "degenerate": "a box without width or height",
    "out_of_image": "a box that leaves its image by more than a pixel",
    "crowd": "a box around a crowd",
    "unknown_class": "a box of a class that the data set does not list",
    "bad_span": "a span that is empty or leaves its text",
    "bad_mask": "a mask that is malformed, without area or made for another size",
    "bad_entry": "an entry that lacks a field, has one of a wrong type or comes twice",
    "empty_text": "a sentence or question without words, or a question without answers",
    "unknown_image": "an annotation of an image that the file does not list",
    "unreadable_image": "an image that cannot be read",
    "wrong_size": "an image of another size than its annotations say",
}
_ACTIONS = {
    problem: (
        "skip",
        "refuse",
        *{"out_of_image": ("clip", "keep"), "crowd": ("keep",), "wrong_size": ("keep",)}.get(problem, ()),
    )
    for problem in PROBLEMS
}


class BoxReport:
    """
    Counts what is wrong in a data set, keeps an example of each kind, and says it once.

    Args:
        policy (`str` or `Mapping[str, str]`, *optional*, defaults to `"skip"`):
            "skip" leaves bad boxes and images out, "refuse" raises at the first, "clip" cuts boxes that leave their
            image and skips everything else. A mapping from the names in `PROBLEMS` to an action sets them one by
            one (the others are skipped); there "keep" leaves "out_of_image", "crowd" and "wrong_size" as they are.
        name (`str`, *optional*): the data set, for messages.

    Attributes:
        counts (`Counter`): occurrences by problem.
        examples (`dict[str, str]`): where the first of each was.

    Raises:
        ValueError: when the policy names an unknown problem or action.
    """

    def __init__(self, policy: str | Mapping[str, str] = "skip", name: str = ""):
        self.actions = _actions_of(policy)
        self.name = name
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._told: set[str] = set()

    def add(self, problem: str, where: str) -> str:
        """
        Count one problem.

        Args:
            problem (`str`): a name in `PROBLEMS`.
            where (`str`): image, box and value, for the message.

        Returns:
            `str`: what to do: "skip", "clip" or "keep".

        Raises:
            ValueError: when the policy is to refuse.
        """
        action = self.actions[problem]
        if action == "refuse":
            raise ValueError(
                f"{self._prefix()}{PROBLEMS[problem]}: {where}. Mend the annotation, or pass "
                f'policy={{"{problem}": "skip"}} to leave such entries out.'
            )
        self.counts[problem] += 1
        self.examples.setdefault(problem, where)
        return action

    def summary(self) -> str:
        """One line a problem: count, what was done, and an example. Empty where all is well."""
        return "\n".join(self._line(problem) for problem in PROBLEMS if self.counts[problem])

    def warn_once(self) -> None:
        """Log every problem that has not been told yet."""
        for problem in PROBLEMS:
            if self.counts[problem] and problem not in self._told:
                self._told.add(problem)
                logger.warning(self._line(problem))

    def _prefix(self) -> str:
        return f"{self.name}: " if self.name else ""

    def _line(self, problem: str) -> str:
        done = {"skip": "left out", "clip": "cut to the image", "keep": "kept"}[self.actions[problem]]
        return (
            f"{self._prefix()}{self.counts[problem]} times {PROBLEMS[problem]} ({problem}), {done}; "
            f"the first: {self.examples[problem]}"
        )


def _actions_of(policy: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(policy, str):
        if policy not in ("skip", "refuse", "clip"):
            raise ValueError(f'`policy` is {policy!r}; choose "skip", "refuse", "clip" or a mapping by problem.')
        return {problem: policy if policy in _ACTIONS[problem] else "skip" for problem in PROBLEMS}
    actions = dict.fromkeys(PROBLEMS, "skip")
    for problem, action in policy.items():
        if problem not in PROBLEMS:
            raise ValueError(f"`policy` names the problem {problem!r}; known ones are {', '.join(PROBLEMS)}.")
        if action not in _ACTIONS[problem]:
            raise ValueError(f"`policy[{problem!r}]` is {action!r}; choose one of {', '.join(_ACTIONS[problem])}.")
        actions[problem] = action
    return actions


def checked_box(box: Sequence[float], width: int, height: int, report: BoxReport, where: str) -> list[float] | None:
    """
    One box as the policy of the report wants it.

    Args:
        box (`Sequence[float]`): x, y, width, height in pixels.
        width, height (`int`): the image's, in pixels.
        report (`BoxReport`): counts problems.
        where (`str`): image and box, for messages.

    Returns:
        `list[float] | None`: x, y, width, height, or `None` where the box is left out.
    """
    if not isinstance(box, (list, tuple, np.ndarray)) or len(box) != 4 or not all(map(_is_finite, box)):
        report.add("not_a_number", f"{where}, bbox {box}")
        return None
    x, y, w, h = (float(value) for value in box)
    if w <= 0 or h <= 0:
        report.add("degenerate", f"{where}, bbox {list(box)}")
        return None
    # Published corners are rounded: up to a pixel outside is no mistake.
    if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
        action = report.add("out_of_image", f"{where}, bbox {list(box)} in an image of {width} x {height}")
        if action == "clip":
            x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
            return [x1, y1, x2 - x1, y2 - y1] if x2 > x1 and y2 > y1 else None
        return [x, y, w, h] if action == "keep" else None
    return [x, y, w, h]


def xyxy_to_xywh(box: Any) -> Any:
    """[x1, y1, x2, y2] as [x, y, width, height]; anything that is not four numbers comes back for `checked_box`."""
    try:
        x1, y1, x2, y2 = box
        return [x1, y1, x2 - x1, y2 - y1]
    except (TypeError, ValueError):
        return box


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def checked_spans(spans: Sequence[Sequence[int]], text: str, report: BoxReport, where: str) -> list[list[int]]:
    """The spans of one box that lie in the text, each [start, end) with start < end; others, or none, are reported."""
    good = []
    if isinstance(spans, Sequence) and not spans:
        report.add("bad_span", f"{where} has no span")
    for span in spans if isinstance(spans, Sequence) else [spans]:
        pair = isinstance(span, Sequence) and len(span) == 2 and all(isinstance(place, int) for place in span)
        if pair and 0 <= span[0] < span[1] <= len(text):
            good.append([span[0], span[1]])
        else:
            report.add("bad_span", f"{where}, span {span} in a text of {len(text)} characters")
    return good


def checked_objects(
    objects: Mapping[str, Sequence[Any]],
    width: int,
    height: int,
    report: BoxReport,
    where: str,
    labels: Sequence[str] | None = None,
    text: str | None = None,
) -> dict[str, list[Any]]:
    """
    The objects of a row that pass, all columns kept in step.

    Args:
        objects (`Mapping[str, Sequence]`): columns as in the schema.
        width, height (`int`): the image's, in pixels.
        report (`BoxReport`): counts problems and decides.
        where (`str`): the image, for messages.
        labels (`Sequence[str]`, *optional*): class names; categories become names and unknown ones are reported.
        text (`str`, *optional*): the sentence that `tokens_positive` points into.

    Returns:
        `dict[str, list]`: new columns; the arguments stay as they were.

    Raises:
        ValueError: when columns differ in length, or the policy refuses.
    """
    lengths = {name: len(column) for name, column in objects.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where}: the columns of `objects` must be equally long, got {lengths}.")
    kept: dict[str, list[Any]] = {name: [] for name in objects}
    known = set(labels) if labels is not None else None
    for index in range(len(objects.get("bbox", ()))):
        entry = {name: column[index] for name, column in objects.items()}
        if _check_entry(entry, width, height, report, f"{where}, object {index}", labels, known, text):
            for name, value in entry.items():
                kept[name].append(value)
    return kept


def _check_entry(
    entry: dict[str, Any],
    width: int,
    height: int,
    report: BoxReport,
    where: str,
    labels: Sequence[str] | None,
    known: set[str] | None,
    text: str | None,
) -> bool:
    """Whether one object stays; its box, class and spans are brought into the schema's form in place."""
    if entry.get("iscrowd") and report.add("crowd", f"{where}, bbox {entry['bbox']}") == "skip":
        return False
    if labels is not None and "category" in entry:
        name = category_name(entry["category"], labels)
        if name is None or known is None or name not in known:
            report.add("unknown_class", f"{where}, category {entry['category']!r}")
            return False
        entry["category"] = name
    if text is not None and "tokens_positive" in entry:
        entry["tokens_positive"] = checked_spans(entry["tokens_positive"], text, report, where)
        if not entry["tokens_positive"]:
            return False
    entry["bbox"] = checked_box(entry["bbox"], width, height, report, where)
    if entry["bbox"] is None:
        return False
    problem = mask_problem(entry.get("segmentation"), height, width)
    if problem:
        report.add("bad_mask", f"{where}, {problem}; the box stays")
        entry["segmentation"] = None
    return True


def category_name(category: int | str, labels: Sequence[str]) -> str | None:
    """The class name of a category given by name or by index into the labels; `None` for an index outside."""
    if isinstance(category, str):
        return category
    is_index = isinstance(category, (int, np.integer)) and 0 <= category < len(labels)
    return labels[category] if is_index else None


def check_row(row: Mapping[str, Any], report: BoxReport | None = None) -> dict[str, Any]:
    """
    A row as the schema wants it.

    Args:
        row (`Mapping`): see the head of this module.
        report (`BoxReport`, *optional*): where bad boxes go; without one they are refused.

    Returns:
        `dict`: a copy whose objects passed.

    Raises:
        ValueError: when a field is missing or unknown, or the report's policy refuses.
        TypeError: when a field has a wrong type.
    """
    kind = row.get("kind")
    if kind not in KINDS:
        raise ValueError(f"`kind` of a row is {kind!r}; expected one of {', '.join(KINDS)}.")
    needed = {"detection": ("labels", "objects"), "grounding": ("text", "objects"), "caption": ("text",)}
    missing = [name for name in ("image", "image_id", *needed.get(kind, ("question", "answers"))) if name not in row]
    if missing:
        raise ValueError(f"the {kind} row {row.get('image_id')!r} lacks {', '.join(missing)}.")
    size = getattr(row["image"], "size", None)
    if not isinstance(size, tuple):
        raise TypeError(f"`image` of row {row['image_id']!r} is a {type(row['image']).__name__}; pass a PIL image.")
    checked = dict(row)
    if row.get("objects") is not None:
        report = report if report is not None else BoxReport("refuse")
        where = f"image {row['image_id']!r}"
        width, height = size
        labels, text = row.get("labels"), row.get("text")
        checked["objects"] = checked_objects(row["objects"], width, height, report, where, labels, text)
    return checked
