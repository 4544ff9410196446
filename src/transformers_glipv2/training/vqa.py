"""Training of answers: the vocabulary, a head trained over cached detector outputs, scores and baselines."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from tqdm.auto import tqdm

from transformers_glipv2.data.answer_text import normalize_answer
from transformers_glipv2.data.answers import build_answer_vocabulary
from transformers_glipv2.data.seeding import derive_seed
from transformers_glipv2.evaluation.vqa import answer_accuracy
from transformers_glipv2.inference.options import check_batch_size
from transformers_glipv2.inference.text_results import fitting_part
from transformers_glipv2.modeling_glipv2 import GLIPv2ObjectDetectionOutput
from transformers_glipv2.training.batches import read_batches
from transformers_glipv2.training.collators import Examples
from transformers_glipv2.training.evaluation import AblatedImages, gather_in_order, make_detector, own_examples

# What an answer head takes of the detector's output.
ANSWER_INPUTS = (
    "fused_text",
    "attention_mask",
    "feature_maps",
    "fused_feature_maps",
    "logits",
    "centerness",
    "pred_boxes",
)


@torch.no_grad()
def frozen_batches(
    model: nn.Module, batches: Iterable[dict[str, Any]], device: torch.device, progress: bool = True
) -> list[dict[str, Any]]:
    """
    What the frozen part of a model makes of questions, for a head that is to go over them again and again.

    Args:
        model (`GLIPv2ForVisualQuestionAnswering`): with its detector frozen.
        batches (`Iterable[dict]`): as `AnswerCollator` makes them.
        device (`torch.device`): of the model.
        progress (`bool`, *optional*, defaults to `True`): show a bar.

    Returns:
        `list[dict]`: for each batch {"detector_output", "answer_labels"}, which the model takes. In memory, maps in
        bfloat16, which holds what float16 cannot: about 0.6 MB for a question to the nano.
    """
    model.eval()
    kept = []
    with read_batches(tqdm(batches, desc="frozen part", disable=not progress)) as batches:
        for batch in batches:
            answer_labels = batch["answer_labels"]
            inputs = {name: value for name, value in batch.items() if name not in ("labels", "answer_labels")}
            output = model(**send_to_device(inputs, device))
            fields = {name: output[name] for name in ANSWER_INPUTS}
            for name in ("feature_maps", "fused_feature_maps"):
                fields[name] = tuple(level.bfloat16() for level in fields[name])
            kept.append({"detector_output": send_to_device(fields, "cpu"), "answer_labels": answer_labels})
    return kept


def repeated(kept: Sequence[dict[str, Any]], start_step: int, num_steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """
    The batches of `frozen_batches` for the steps of a run: all in one order, then all in another, and so on. The step
    and the seed alone decide which batch a step gets.
    """
    for step in range(start_step, num_steps):
        epoch, position = divmod(step, len(kept))
        order = random.Random(derive_seed(seed, "epoch", epoch)).sample(range(len(kept)), len(kept))
        batch = kept[order[position]]
        fields = dict(batch["detector_output"])
        for name in ("feature_maps", "fused_feature_maps"):
            fields[name] = tuple(level.float() for level in fields[name])
        yield {"detector_output": GLIPv2ObjectDetectionOutput(**fields), "answer_labels": batch["answer_labels"]}


def answers_of_sources(sources: Sequence[Any], min_count: int = 9) -> list[str]:
    """
    The vocabulary of answers of data sets.

    Args:
        sources (`Sequence`): data sets of the schema. One with a method `answers` (composite scenes) says what may
            be asked; of the others the majority answers of the questions are counted.
        min_count (`int`, *optional*, defaults to 9): questions that an answer must be the majority's of.

    Returns:
        `list[str]`: normalised as the VQA accuracy does, each once.

    Raises:
        ValueError: when there is no question, or no answer is frequent enough.
    """
    listed: list[str] = []
    counted: list[str] = []
    for source in sources:
        if hasattr(source, "answers"):
            listed += [normalize_answer(answer) for answer in source.answers()]
        else:
            records = getattr(source, "records", ())
            counted += [record["answer"] for record in records if record["kind"] == "vqa" and "answer" in record]
    if not listed and not counted:
        raise ValueError("no source has questions with answers; give one of kind `vqa`, or `scenes` with questions.")
    if counted:
        listed += build_answer_vocabulary(counted, min_count)
    return list(dict.fromkeys(answer for answer in listed if answer))


def best_constant_answers(examples: Examples) -> dict[str, float]:
    """
    The score of the best constant answer to each type of question, a baseline that needs no model.

    Returns:
        `dict[str, float]`: in percent, "accuracy" over all questions and "accuracy_TYPE" of each type.
    """
    by_type = defaultdict(list)
    for example in examples:
        by_type[example.get("question_type", "any")].append(example["answers"])
    chosen = {}
    for name, answers in by_type.items():
        counts: list[Counter[str]] = [Counter(own) for own in answers]
        candidates = {answer for count in counts for answer, _ in count.most_common(1)}
        # Sorted, so that ties fall the same way each time.
        chosen[name] = max(sorted(candidates), key=lambda one: sum(answer_accuracy(one, own) for own in answers))
    return answer_scores([(example, chosen[example.get("question_type", "any")]) for example in examples])


def answer_scores(pairs: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, float]:
    """
    VQA accuracy of (example, answer) pairs, in percent: "accuracy" over all, "accuracy_TYPE" for each `question_type`.
    """
    scores = defaultdict(list)
    for example, answer in pairs:
        score = 100 * answer_accuracy(answer, example["answers"])
        scores["accuracy"].append(score)
        if "question_type" in example:
            scores[f"accuracy_{example['question_type']}"].append(score)
    return {name: sum(values) / len(values) for name, values in sorted(scores.items())}


class AnswerEvaluator:
    """
    VQA accuracy of a model, over all processes.

    Args:
        accelerator (`Accelerator`): deals the examples to the processes.
        processor (`GLIPv2Processor`).
        examples (`Sequence[Mapping]`): of kind "vqa".
        with_images (`bool`, *optional*, defaults to `True`): `False` ablates them.
        progress (`bool`, *optional*, defaults to `True`): show bars.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`): see `make_detector`.

    Returns (when called with a prepared model in eval mode):
        `dict[str, float]`: as `answer_scores`, the same on every process.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        processor: Any,
        examples: Examples,
        with_images: bool = True,
        progress: bool = True,
        batch_size: int | str = "auto",
    ):
        check_batch_size(batch_size)
        self.accelerator = accelerator
        self.processor = processor
        self.examples = examples
        self.with_images = with_images
        self.progress = progress and accelerator.is_main_process
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        detector = make_detector(self.accelerator, self.processor, model, self.batch_size)
        if not self.with_images:
            detector.network = AblatedImages(detector.model)
        answer = partial(detector.answer_batch, top_k=1, limits=None)
        asked: list[tuple[int, str]] = []

        def images() -> Iterator[Any]:
            for index, example in own_examples(self.accelerator, self.examples, self.progress):
                asked.append((index, fitting_part(example["question"], self.processor)))
                yield example["image"]

        with self.accelerator.autocast():
            found = list(detector.results(images(), lambda position: asked[position][1], detector.options, answer))
        best = [(index, one["answers"][0]["answer"]) for (index, _), one in zip(asked, found, strict=True)]
        return answer_scores(list(zip(self.examples, gather_in_order(best), strict=True)))
