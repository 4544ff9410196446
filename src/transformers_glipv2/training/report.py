"""What a fine-tuned folder says about itself: a model card and plots."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file

from transformers_glipv2.data.files import write_text
from transformers_glipv2.evaluation.confusion import confusion_matrix
from transformers_glipv2.inference.drawing import DrawnObject
from transformers_glipv2.training.evaluation import REPORTED, DetectionEvaluator
from transformers_glipv2.training.plots import (
    draw_samples,
    has_matplotlib,
    plot_confusion,
    plot_losses,
    plot_precision,
    read_curves,
)

PLOTS = "plots"
NUM_SAMPLES = 6
_HEADS = {
    "mask_head": "masks",
    "answer_head": "answers to questions",
    "caption_head": "captions",
    "mlm_head": "masked tokens",
    "contrastive_head": "regions against tokens of a batch",
}


def write_report(
    options: Any,
    metrics: Mapping[str, Any],
    scored: DetectionEvaluator | None,
    num_images: int,
    other_heads: Sequence[str],
) -> None:
    """
    Writes `README.md` and `plots/` of a run's folder.

    Args:
        options (`FineTuneOptions`): of the run.
        metrics (`Mapping`): what `metrics.json` holds.
        scored (`DetectionEvaluator`, *optional*): after it scored the kept weights.
        num_images (`int`): that were trained on.
        other_heads (`Sequence[str]`): heads of the start that were kept.
    """
    folder = Path(options.output)
    split = options.eval_split if options.eval_split in metrics else options.test_split or "test"
    plots = draw_plots(folder, metrics, scored, split)
    card = make_card(options, metrics, num_images, other_heads, plots)
    write_text(folder / "README.md", str(card))


def draw_plots(
    folder: Path, metrics: Mapping[str, Any], scored: DetectionEvaluator | None, split: str
) -> list[tuple[str, str]]:
    """Draws what the run has numbers for; returns title and path in the folder of each plot."""
    losses, evaluations = read_curves(folder / "training_log.jsonl")
    threshold = metrics.get("threshold") or 0.3
    drawn: list[tuple[str, str]] = []

    def target(name: str, title: str) -> Path:
        drawn.append((title, f"{PLOTS}/{name}.png"))
        return folder / PLOTS / f"{name}.png"

    if has_matplotlib():
        if losses:
            plot_losses(losses, target("loss", "Training loss"))
        if evaluations:
            file = target("average_precision", f"Average precision on {split}")
            plot_precision(evaluations, metrics.get("best_step"), split, file)
        if scored is not None and scored.content["images"]:
            names = [category["name"] for category in scored.content["categories"]]
            matrix = confusion_matrix(scored.content, scored.predictions, threshold)
            plot_confusion(matrix, names, threshold, split, target("confusion_matrix", "Confusion matrix"))
    if scored is not None and scored.content["images"]:
        draw_samples(samples_of(scored, threshold), target("predictions", "Sample predictions"))
    return drawn


def samples_of(scored: DetectionEvaluator, threshold: float) -> list[tuple[Any, list[DrawnObject], list[DrawnObject]]]:
    """Images evenly over the split, with their objects and what the model finds above a score."""
    count = len(scored.dataset)
    indices = sorted({round(place * (count - 1) / max(NUM_SAMPLES - 1, 1)) for place in range(NUM_SAMPLES)})
    names = {category["id"]: category["name"] for category in scored.content["categories"]}
    order = {category_id: index for index, category_id in enumerate(names)}
    samples = []
    for index in indices:
        example = scored.dataset.read(index)
        if example is None:
            continue

        def objects(entries: Sequence[Mapping[str, Any]], image_id: Any, scores: bool) -> list[DrawnObject]:
            own = [entry for entry in entries if entry["image_id"] == image_id]
            own.sort(key=lambda entry: -entry.get("score", 1.0))
            return [
                DrawnObject(
                    names[entry["category_id"]] + (f" {entry['score']:.2f}" if scores else ""),
                    _corners(entry["bbox"]),
                    group=order[entry["category_id"]],
                )
                for entry in own
                if entry.get("score", 1.0) >= threshold
            ]

        truth = objects(scored.content["annotations"], example["image_id"], scores=False)
        found = objects(scored.predictions, example["image_id"], scores=True)
        samples.append((example["image"], truth, found))
    return samples


def make_card(
    options: Any,
    metrics: Mapping[str, Any],
    num_images: int,
    other_heads: Sequence[str],
    plots: Sequence[tuple[str, str]],
) -> ModelCard:
    """The model card of a run; paths of this machine are not in it."""
    data_name, start = Path(options.data).name, start_name(options.model)
    split = options.eval_split if options.eval_split in metrics else None
    splits = [name for name in dict.fromkeys((split, options.test_split or "test")) if name and name in metrics]
    results = [
        EvalResult(
            task_type="object-detection",
            task_name="Object detection",
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_split=name,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(metrics[name][metric], 2),
        )
        for name in splits
        for metric in ("AP", "AP50", "AP75")
    ]
    data = ModelCardData(
        license=license_of(options.model),
        library_name="transformers",
        pipeline_tag="zero-shot-object-detection",
        base_model=options.model if _is_hub_id(options.model) else None,
        tags=["glipv2", "object-detection", "vision"],
        model_name=Path(options.output).absolute().name,
        eval_results=results or None,
    )
    labels = list(metrics["labels"])
    recipe = metrics["recipe"]
    lines = [
        f"# {Path(options.output).absolute().name}",
        "",
        f"A GLIPv2 detector of {_listed(labels)}, fine-tuned from {start} on {num_images} images of {data_name}.",
        "",
        "## Use",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        "import transformers_glipv2",
        "",
        f'detector = pipeline("zero-shot-object-detection", model="{Path(options.output).absolute().name}")',
        f'print(detector("image.jpg"{_threshold(metrics)}))',
        "```",
        "",
        "The labels are those of training unless others are given.",
        "",
        *_scores(metrics, splits),
        "## Training",
        "",
        "```bash",
        command_of(options),
        "```",
        "",
        f"{metrics['steps']} steps of {recipe['batch_size']} images at {' or '.join(map(str, recipe['image_size']))} "
        f"pixels (shortest edge), learning rate {recipe['learning_rate']:.2g}, "
        f"{metrics['trainable_parameters']:,} parameters trained (`--train {options.train}`), "
        f"{metrics['seconds'] / 60:.1f} minutes.",
        "",
        *_other_heads(options.train, other_heads),
    ]
    for title, path in plots:
        lines += [f"### {title}", "", f"![{title}]({path})", ""]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def command_of(options: Any) -> str:
    """The command of a run, with names in place of this machine's paths."""
    words = ["glipv2 train", f"--model {start_name(options.model)}", f"--data {Path(options.data).name}"]
    own = {"model", "data", "output", "resume", "push_to_hub", "allow_custom_loaders", "allow_outside_paths"}
    defaults = {name: field.default for name, field in type(options).__dataclass_fields__.items()}
    for name, value in vars(options).items():
        if name in own or value == defaults[name]:
            continue
        if value is True:
            words.append(f"--{name}")
        else:
            values = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name} " + " ".join(_plain(one) for one in values)]
    return " ".join(words)


def start_name(model: str) -> str:
    """The start as a card names it: without the folders of this machine that it is in."""
    return model if not Path(model).is_dir() else Path(model).absolute().name


def license_of(model: str) -> str | None:
    """The licence in the card of the start; `None` where it has none."""
    file = cached_file(model, "README.md", _raise_exceptions_for_missing_entries=False)
    try:
        content = metadata_load(file) if file is not None else None
    except ValueError:
        return None
    return (content or {}).get("license")


def _scores(metrics: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    if not splits:
        return []
    names = [name for name in REPORTED if any(metrics[split][name] >= 0 for split in splits)]
    rows = [f"| split | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    rows += [f"| {split} | {' | '.join(f'{metrics[split][name]:.1f}' for name in names)} |" for split in splits]
    best = (
        f" The weights of step {metrics['best_step']} are the best on {splits[0]}." if "best_step" in metrics else ""
    )
    return ["## Scores", "", f"COCO average precision in percent.{best}", "", *rows, ""]


def _other_heads(way: str, heads: Sequence[str]) -> list[str]:
    if not heads:
        return []
    named = ", ".join(_HEADS.get(head, head) for head in heads)
    if way == "prompt":
        return [f"The other heads of the start ({named}) are as they were; other prompts give what they gave.", ""]
    return [
        f"The other heads of the start ({named}) are kept, but were not trained with the new weights: check their "
        "results, or train them again.",
        "",
    ]


def _threshold(metrics: Mapping[str, Any]) -> str:
    threshold = metrics.get("threshold")
    return f", threshold={math.floor(threshold * 100) / 100:g}" if threshold else ""


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(json.dumps(label, ensure_ascii=False) for label in labels[:20])
    return shown + (f" and {len(labels) - 20} more classes" if len(labels) > 20 else "")


def _plain(value: Any) -> str:
    return Path(value).name if isinstance(value, Path) or Path(str(value)).is_absolute() else str(value)


def _is_hub_id(model: str) -> bool:
    if Path(model).exists() or model.count("/") != 1:
        return False
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]
