"""
Model cards from a template, a description and measured numbers.

`NAME.md` is the text (Jinja), `NAME.json` beside it says what the Hub shows and which numbers were measured: each
entry of "results" names a file that an evaluation script wrote, the keys that lead to a number in it, and the command.
Numbers stand in those files only; a result whose file is not there yet is left out.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

TASK_OF_HEAD = {
    "detection_head": "boxes of labels and of phrases",
    "mask_head": "masks of labels and of phrases",
    "answer_head": "answers to questions",
    "caption_head": "captions",
    "mlm_head": "masked tokens",
    "contrastive_head": "regions against tokens of a batch (training)",
}


def read_results(entries: list[dict[str, Any]], folder: Path) -> tuple[list[EvalResult], list[str]]:
    """
    Measured numbers.

    Args:
        entries: {"file", "keys" (which lead to a number in it), "scale" (optional factor), "command" (how it was
            measured)} and the fields of `EvalResult` but for the value.
        folder: with the files that evaluation scripts wrote.

    Returns:
        The results, rounded to two places, and a sentence for each that was not measured.

    Raises:
        ValueError: when the keys do not lead to a number, or two data sets would show as one.
    """
    results: list[EvalResult] = []
    missing: list[str] = []
    names: dict[tuple[Any, ...], str] = {}
    for entry in entries:
        fields = dict(entry)
        file, keys, command = folder / fields.pop("file"), fields.pop("keys"), fields.pop("command")
        scale = fields.pop("scale", 1)
        if not file.is_file():
            missing.append(f"{fields['dataset_name']}, {fields['metric_name']}: no '{file.name}' yet; run `{command}`")
            continue
        value: Any = json.loads(file.read_text(encoding="utf-8"))
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"'{file}' has no number at {' > '.join(keys)}, but {value!r}; correct the keys.")
        result = EvalResult(**fields, metric_value=round(scale * value, 2))
        # The Hub groups by what identifies a data set and shows one name for a group.
        if names.setdefault(result.unique_identifier, result.dataset_name) != result.dataset_name:
            raise ValueError(
                f"{names[result.unique_identifier]!r} and {result.dataset_name!r} would show as one data set; give "
                "them `dataset_config`s of their own."
            )
        results.append(result)
    return results, missing


def results_table(entries: list[dict[str, Any]], results: list[EvalResult]) -> str:
    """Markdown: a row for each result, with the command that measured it."""
    commands = {(one["dataset_name"], one["metric_name"]): one["command"] for one in entries}
    rows = ["| task | data | metric | value | measured with |", "|---|---|---|---|---|"]
    for one in results:
        command = commands[one.dataset_name, one.metric_name]
        rows.append(
            f"| {one.task_name} | {one.dataset_name} | {one.metric_name} | {one.metric_value:.2f} | `{command}` |"
        )
    return "\n".join(rows) if results else "Nothing was measured yet."


def make_card(
    template: Path,
    results_folder: Path,
    repo_id: str,
    parts: dict[str, int],
    config: dict[str, Any],
    size: Any,
    **fields: Any,
) -> tuple[ModelCard, list[str]]:
    """
    Args:
        template: the text, beside its description (same name, `.json`).
        results_folder: with the files that evaluation scripts wrote.
        repo_id: where it is published.
        parts: parameters of each part, from `check_model`.
        config: content of config.json.
        size: of the resized images, from processor_config.json.
        fields: of `ModelCardData`, in place of those of the description.

    Returns:
        The card, and a sentence for each result that was not measured.
    """
    description = json.loads(template.with_suffix(".json").read_text(encoding="utf-8"))
    entries = description.pop("results")
    results, missing = read_results(entries, results_folder)
    data = ModelCardData(**{**description, **fields}, model_name=repo_id.split("/")[-1], eval_results=results or None)
    card = ModelCard.from_template(
        data,
        template_path=str(template),
        repo_id=repo_id,
        parts=parts,
        heads=[(name, TASK_OF_HEAD[name]) for name in TASK_OF_HEAD if name in parts],
        millions=f"{sum(parts.values()) / 1e6:.1f}",
        config=config,
        size=size,
        results_table=results_table(entries, results),
        missing=missing,
    )
    return card, missing
