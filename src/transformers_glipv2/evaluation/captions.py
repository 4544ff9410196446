"""
COCO caption scores: BLEU-1 to 4, METEOR, ROUGE-L, CIDEr(-D) and SPICE, by pycocoevalcap.

Its tokenizer and METEOR run Java. SPICE needs models that pycocoevalcap downloads on first use.

>>> evaluate_captions("captions_val2017.json", "results.json")["CIDEr"]
"""

import contextlib
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from transformers_glipv2.evaluation.detections import content_of

METRICS = ("BLEU", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
DEFAULT_METRICS = METRICS[:-1]
SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"
_BLEU_NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")


def evaluate_captions(
    references: str | Path | Mapping[str, Any],
    predictions: str | Path | Iterable[Mapping[str, Any]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    tokenize: bool = True,
) -> dict[str, Any]:
    """
    Scores of one caption an image.

    CIDEr weighs words by the references of the images that have a prediction, so its value depends on which those
    are.

    Args:
        references (`str`, `Path` or `Mapping`): a COCO captions file or its content.
        predictions (`str`, `Path` or `Iterable[Mapping]`): a result file or its entries: `image_id`, `caption`.
        metrics (`Sequence[str]`, *optional*, defaults to all but SPICE): of "BLEU", "METEOR", "ROUGE_L", "CIDEr",
            "SPICE".
        tokenize (`bool`, *optional*, defaults to `True`): `False` where captions are words in lower case without
            punctuation already; then Java is needed for METEOR and SPICE only.

    Returns:
        `dict`: Bleu_1 to Bleu_4, METEOR, ROUGE_L, CIDEr (and SPICE) as fractions, and "per_image": id -> the same.

    Raises:
        ValueError: when an image is unknown or has two predictions, or there is none, or a metric is unknown.
        RuntimeError: when Java or SPICE's models are missing.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"`metrics` is {list(metrics)}; choose from {', '.join(METRICS)}.")
    candidates = _candidates(content_of(predictions))
    truths: dict[Any, list[str]] = {image_id: [] for image_id in candidates}
    for entry in content_of(references)["annotations"]:
        if entry["image_id"] in truths:
            truths[entry["image_id"]].append(entry["caption"])
    without = [image_id for image_id, captions in truths.items() if not captions]
    if without:
        raise ValueError(
            f"`predictions` hold {len(without)} images without a reference, such as {without[0]!r}; is it another "
            "split?"
        )
    if tokenize or "METEOR" in metrics or "SPICE" in metrics:
        _require_java()
    if "SPICE" in metrics:
        _require_spice()
    if tokenize:
        truths, candidates = ptb_tokenize(truths), ptb_tokenize(candidates)
    return _scores(truths, candidates, metrics)


def ptb_tokenize(captions: Mapping[Any, Sequence[str]]) -> dict[Any, list[str]]:
    """
    Captions as the Penn Treebank tokenizer splits them, in lower case and without punctuation.

    Args:
        captions (`Mapping[Any, Sequence[str]]`): by image.

    Returns:
        `dict[Any, list[str]]`: of the same keys and lengths, words joined by single spaces.

    Raises:
        RuntimeError: when Java is missing, or the tokenizer gives another number of lines.
    """
    _require_java()
    # The tokenizer takes one caption a line, so nothing else may break a line.
    entries = {key: [{"caption": " ".join(text.split())} for text in texts] for key, texts in captions.items()}
    tokenized = PTBTokenizer().tokenize(entries)
    short = [key for key, texts in captions.items() if len(tokenized.get(key, ())) != len(texts)]
    if short:
        raise RuntimeError(f"the tokenizer lost captions of {len(short)} images, such as {short[0]!r}.")
    return tokenized


def _candidates(predictions: Iterable[Mapping[str, Any]]) -> dict[Any, list[str]]:
    candidates: dict[Any, list[str]] = {}
    for entry in predictions:
        if entry["image_id"] in candidates:
            raise ValueError(f"`predictions` hold the image {entry['image_id']!r} twice; keep one caption an image.")
        candidates[entry["image_id"]] = [entry["caption"]]
    if not candidates:
        raise ValueError("`predictions` is empty; there is nothing to score.")
    return candidates


def _scores(
    truths: Mapping[Any, list[str]], candidates: Mapping[Any, list[str]], metrics: Sequence[str]
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    per_image: dict[Any, dict[str, float]] = {image_id: {} for image_id in candidates}

    def keep(name: str, score: float, scores: Iterable[float], image_ids: Iterable[Any]) -> None:
        results[name] = float(score)
        for image_id, value in zip(image_ids, scores, strict=True):
            per_image[image_id][name] = float(value)

    if "BLEU" in metrics:
        with contextlib.redirect_stdout(io.StringIO()):
            corpus, each = Bleu(4).compute_score(truths, candidates)
        for name, score, scores in zip(_BLEU_NAMES, corpus, each, strict=True):
            keep(name, score, scores, truths)
    for name, scorer in (("METEOR", Meteor), ("ROUGE_L", Rouge), ("CIDEr", Cider)):
        if name in metrics:
            score, scores = scorer().compute_score(truths, candidates)
            keep(name, score, scores, truths)
    if "SPICE" in metrics:
        score, entries = spice.Spice().compute_score(truths, candidates)
        keep("SPICE", score, (entry["All"]["f"] for entry in entries), sorted(truths))
    results["per_image"] = per_image
    return results


def _require_java() -> None:
    if shutil.which("java") is None:
        raise RuntimeError(
            "caption scores need Java: the Penn Treebank tokenizer, METEOR and SPICE are Java programs. Install a "
            "Java runtime (Debian: apt install default-jre-headless), or pass tokenize=False and "
            "metrics=('BLEU', 'ROUGE_L', 'CIDEr') for captions that are tokenized already."
        )


def _require_spice() -> None:
    if not (Path(spice.__file__).parent / "lib" / SPICE_MODELS).is_file():
        raise RuntimeError(
            f"SPICE needs {SPICE_MODELS} (about 400 MB) and Java 8. Where the network allows it, fetch the models by "
            'python -c "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; get()", or '
            "leave SPICE out of `metrics`."
        )
