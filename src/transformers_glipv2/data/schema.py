"""One schema for every data set: what an example holds, how it is checked, and how bad annotations are reported.

An example is a plain dict of one image:

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
        phrase           optional; grounding: the words that refer to the box
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

from transformers_glipv2.data.files import printable
from transformers_glipv2.data.masks import mask_problem

logger = logging.get_logger(__name__)

KINDS = ("detection", "grounding", "caption", "vqa")

PROBLEMS = {
    "not_a_number": "a box with fewer or more than 4 numbers, or with one that is NaN or infinite",
    "degenerate": "a box without width or height",
    "out_of_image": "a box that leaves its image by more than a pixel",
    "mostly_outside": "a box of which less than a tenth is in its image",
    "crowd": "a box around a crowd",
    "unknown_class": "a box of a class that the data set does not list",
    "bad_span": "a span that is empty or leaves its text",
    "bad_mask": "a mask that is malformed, without area or made for another size",
    "bad_entry": "an entry that lacks a field, has one of a wrong type or comes twice",
    "empty_text": "a sentence or question without words, or a question without answers",
    "unknown_image": "an annotation of an image that the file does not list",
    "outside_path": "a file name that leads out of the image folder (allow_outside_paths follows it)",
    "unreadable_image": "an image that cannot be read",
    "wrong_size": "an image of another size than its annotations say",
}
# What is counted though nothing is left out.
NOTES = {
    "turned": "an image stored on its side or head, with boxes made on the stored pixels: both were turned upright",
    "no_labels": "an image without a label file: taken to show none of the classes",
    "no_size": "an annotation that does not give the size of its image: read from the image",
    "same_name": "a class whose name another one has: both are one class",
    "orientation_unclear": (
        "an image whose size does not tell whether its boxes were made before or after it is turned upright: taken to "
        'be upright already (boxes_on="stored" takes the other)'
    ),
}
_ACTIONS = {
    problem: (
        "skip",
        "refuse",
        *{"out_of_image": ("clip", "keep"), "crowd": ("keep",), "wrong_size": ("keep",)}.get(problem, ()),
    )
    for problem in PROBLEMS
}
_DEFAULT_ACTIONS = {problem: "clip" if problem == "out_of_image" else "skip" for problem in PROBLEMS}
# Of a box's area: with less inside of the image, what it shows cannot be recognised.
_MIN_INSIDE = 0.1


class BoxReport:
    """
    Counts what is wrong in a data set, remembers the first of each kind, and logs it once.

    Args:
        policy (`str` or `Mapping[str, str]`, *optional*, defaults to `"skip"`):
            "skip" leaves bad boxes and images out, and clips boxes that leave their image; "refuse" raises at the
            first problem. A mapping from the names in `PROBLEMS` to an action sets them one by one (the others are
            as with "skip"): "skip", "refuse", for "out_of_image" also "clip", and for "out_of_image", "crowd" and
            "wrong_size" also "keep".
        name (`str`, *optional*): the data set, for messages.

    Attributes:
        counts (`Counter`): occurrences by problem, and by name in `NOTES`.
        first (`dict[str, str]`): where the first of each was.

    Raises:
        ValueError: when the policy names an unknown problem or action.
    """

    def __init__(self, policy: str | Mapping[str, str] = "skip", name: str = ""):
        self.actions = actions_of(policy)
        self.name = name
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self._noted: set[str] = set()
        self._logged: set[str] = set()

    def add(self, problem: str, where: str, times: int = 1) -> str:
        """
        Count a problem.

        Args:
            problem (`str`): a name in `PROBLEMS`.
            where (`str`): image, box and value, for the message.
            times (`int`, *optional*, defaults to 1): how often it was found, the first time there.

        Returns:
            `str`: what to do: "skip", "clip" or "keep".

        Raises:
            ValueError: when the policy is to refuse.
        """
        action = self.actions[problem]
        if action == "refuse":
            raise ValueError(
                f"{self._prefix()}{PROBLEMS[problem]}: {printable(where)}. Mend the annotation, or pass "
                f'policy={{"{problem}": "skip"}} to leave such entries out.'
            )
        self.counts[problem] += times
        self.first.setdefault(problem, where)
        return action

    def note(self, name: str, where: str) -> None:
        """Count what is no problem, a name in `NOTES`: once for each `where`, since images are read many times."""
        if where not in self._noted:
            self._noted.add(where)
            self.counts[name] += 1
            self.first.setdefault(name, where)

    def state(self) -> dict[str, Any]:
        """What `json.dumps` takes, for `restore`."""
        return {"counts": dict(self.counts), "first": self.first, "noted": sorted(self._noted)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what another report has counted; nothing of it has been logged."""
        self.counts = Counter(state["counts"])
        self.first = dict(state["first"])
        self._noted = set(state["noted"])

    def summary(self) -> str:
        """One line a problem: count, what was done, and where the first was. Empty where all is well."""
        return "\n".join(self._line(name) for name in (*PROBLEMS, *NOTES) if self.counts[name])

    def warn_once(self) -> None:
        """Log every problem that has not been logged yet."""
        for name in (*PROBLEMS, *NOTES):
            if self.counts[name] and name not in self._logged:
                self._logged.add(name)
                logger.warning(self._line(name))

    def _prefix(self) -> str:
        return f"{printable(self.name)}: " if self.name else ""

    def _line(self, problem: str) -> str:
        if problem in NOTES:
            what = f"{NOTES[problem]} ({problem})"
        else:
            done = {"skip": "left out", "clip": "clipped to the image", "keep": "kept"}[self.actions[problem]]
            what = f"{PROBLEMS[problem]} ({problem}), {done}"
        return f"{self._prefix()}{self.counts[problem]} times {what}; the first: {printable(self.first[problem])}"


def actions_of(policy: str | Mapping[str, str]) -> dict[str, str]:
    """What a policy does about each of `PROBLEMS`; raises ValueError for an unknown problem or action."""
    if isinstance(policy, str):
        if policy not in ("skip", "refuse"):
            raise ValueError(f'`policy` is {policy!r}; choose "skip", "refuse" or a mapping by problem.')
        return dict.fromkeys(PROBLEMS, "refuse") if policy == "refuse" else _DEFAULT_ACTIONS
    actions = dict(_DEFAULT_ACTIONS)
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
    if x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1:
        return [x, y, w, h]
    where = f"{where}, bbox {list(box)} in an image of {width} x {height}"
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    inside = max(x2 - x1, 0.0) / w * (max(y2 - y1, 0.0) / h)
    if report.actions["out_of_image"] == "clip" and inside < _MIN_INSIDE:
        report.add("mostly_outside", where)
        return None
    action = report.add("out_of_image", where)
    if action == "clip":
        return [x1, y1, x2 - x1, y2 - y1]
    return [x, y, w, h] if action == "keep" else None


def xyxy_to_xywh(box: Any) -> Any:
    """[x1, y1, x2, y2] as [x, y, width, height]; what is not four numbers is returned as it is, for `checked_box`."""
    try:
        x1, y1, x2, y2 = box
        return [x1, y1, x2 - x1, y2 - y1]
    except (TypeError, ValueError):
        return box


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # whole numbers have no end in json
        return False


def checked_spans(spans: Sequence[Sequence[int]], text: str, report: BoxReport, where: str) -> list[list[int]]:
    """The spans of one box that are in the text, each [start, end) with start < end; others, or none, are reported."""
    good: list[list[int]] = []
    if spans is None or (isinstance(spans, Sequence) and not spans):
        report.add("bad_span", f"{where} has no span")
        return good
    for span in spans if isinstance(spans, Sequence) else [spans]:
        pair = isinstance(span, Sequence) and len(span) == 2 and all(isinstance(border, int) for border in span)
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
    names: Sequence[str] | None = None,
) -> dict[str, list[Any]]:
    """
    The objects of an example that pass, all columns kept in step.

    Args:
        objects (`Mapping[str, Sequence]`): columns as in the schema.
        width, height (`int`): the image's, in pixels.
        report (`BoxReport`): counts problems and decides.
        where (`str`): the image, for messages.
        labels (`Sequence[str]`, *optional*): class names; categories become names and unknown ones are reported.
        text (`str`, *optional*): the sentence that `tokens_positive` points into.
        names (`Sequence[str]`, *optional*): each object, for messages; by default "object 0", "object 1", ...

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
        name = f"object {index}" if names is None else names[index]
        if _check_entry(entry, width, height, report, f"{where}, {name}", labels, known, text):
            for column, value in entry.items():
                kept[column].append(value)
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


def check_example(example: Mapping[str, Any], report: BoxReport | None = None) -> dict[str, Any]:
    """
    An example as the schema wants it.

    Args:
        example (`Mapping`): see the head of this module.
        report (`BoxReport`, *optional*): where bad boxes go; without one they are refused.

    Returns:
        `dict`: a copy with the objects that passed.

    Raises:
        ValueError: when a field is missing or unknown, or the report's policy refuses.
        TypeError: when a field has a wrong type.
    """
    kind = example.get("kind")
    if kind not in KINDS:
        raise ValueError(f"`kind` of an example is {kind!r}; expected one of {', '.join(KINDS)}.")
    needed = {"detection": ("labels", "objects"), "grounding": ("text", "objects"), "caption": ("text",)}
    needed_here = ("image", "image_id", *needed.get(kind, ("question", "answers")))
    missing = [name for name in needed_here if name not in example]
    if missing:
        raise ValueError(f"the {kind} example {example.get('image_id')!r} lacks {', '.join(missing)}.")
    size = getattr(example["image"], "size", None)
    if not isinstance(size, tuple):
        raise TypeError(
            f"`image` of the example {example['image_id']!r} is a {type(example['image']).__name__}; pass a PIL image."
        )
    checked = dict(example)
    if example.get("objects") is not None:
        report = report if report is not None else BoxReport("refuse")
        where = f"image {example['image_id']!r}"
        width, height = size
        labels, text = example.get("labels"), example.get("text")
        checked["objects"] = checked_objects(example["objects"], width, height, report, where, labels, text)
    return checked
