"""What the sources of a run can be learned from, counted before the first step."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from transformers.utils import logging

from transformers_glipv2.data.answer_text import normalize_answer

logger = logging.get_logger(__name__)

# Of a source whose records cannot be read without making or reading images so many examples are tried.
SAMPLES = 200

_NEEDED = {
    "boxes": "objects with a `bbox`",
    "masks": "objects with a mask (`with_masks: true`, and a `segmentation` in the file)",
    "captions": "captions (sources of kind `captions`, `scenes` or the like)",
    "answers": "questions with answers (a source of kind `vqa`, or `scenes` with questions)",
    "tokens": "sentences whose tokens can be masked (`mlm_probability` above 0)",
}


def require_learnable(
    sources: Sequence[Any], targets: Sequence[str], answers: Iterable[str] | None = None
) -> dict[str, int]:
    """
    Counts what a run can learn from, and refuses a run that would train on nothing.

    Args:
        sources (`Sequence`): data sets of the schema. One whose examples are made or read while training (composite
            scenes, streams) counts up to the first example with a target, of 200.
        targets (`Sequence[str]`): what the run learns, of "boxes", "masks", "captions", "answers" and "tokens"; one of
            them must be there.
        answers (`Iterable[str]`, *optional*): the vocabulary; questions without any of these do not count.

    Returns:
        `dict[str, int]`: how many of each target there are.

    Raises:
        ValueError: when there is none of the targets; says what the sources hold and what was left out of them.
    """
    unknown = [target for target in targets if target not in _NEEDED]
    if unknown:
        raise ValueError(f"`targets` has {unknown[0]!r}; choose of {', '.join(_NEEDED)}.")
    known_answers = None if answers is None else frozenset(answers)
    total: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for source in sources:
        for record in _records(source):
            found = count_targets(record, known_answers)
            kinds[record["kind"]] += 1
            total.update(found)
            if not hasattr(source, "records") and any(found[target] for target in targets):
                break
    counts = {target: total[target] for target in targets}
    if not any(counts.values()):
        held = ", ".join(f"{count} examples of kind {kind!r}" for kind, count in kinds.items()) or "no example"
        reports = [source.report.summary() for source in sources if hasattr(source, "report")]
        left_out = "; ".join(line for report in reports for line in report.splitlines())
        raise ValueError(
            f"there is nothing to learn: the run needs {' or '.join(_NEEDED[target] for target in targets)}, and the "
            f"sources hold {held} without any.{f' Left out were: {left_out}.' if left_out else ''}"
        )
    logger.info(f"learning from {', '.join(f'{count} {target}' for target, count in counts.items())}")
    return counts


def count_targets(record: Mapping[str, Any], answers: frozenset[str] | None = None) -> Counter[str]:
    """
    What one example can be learned from.

    Args:
        record (`Mapping`): an example of the schema; its image is not read.
        answers (`frozenset[str]`, *optional*): the vocabulary of answers.
    """
    objects = record.get("objects") or {}
    found = [normalize_answer(answer) for answer in record.get("answers") or ()]
    text = str(record.get("text") or record.get("question") or "")
    return Counter(
        boxes=len(objects.get("bbox", ())),
        masks=sum(mask is not None for mask in objects.get("segmentation") or ()),
        captions=int(record["kind"] == "caption" and bool(text.strip())),
        answers=int(record["kind"] == "vqa" and any(answers is None or answer in answers for answer in found)),
        tokens=int(record["kind"] != "vqa" and bool(text.strip() or objects.get("bbox"))),
    )


def _records(source: Any) -> Iterable[Mapping[str, Any]]:
    if hasattr(source, "records"):
        return source.records
    if not hasattr(source, "__getitem__"):
        return islice(iter(source), SAMPLES)
    count = min(len(source), SAMPLES) if hasattr(source, "__len__") else SAMPLES
    return (source[index] for index in range(count))
