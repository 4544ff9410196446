"""Training of answers and captions: batches, vocabularies, and scores while a model trains."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import nn
from tqdm.auto import tqdm
from transformers.image_utils import SizeDict

from transformers_glipv2.configuration_glipv2 import GLIPv2Config
from transformers_glipv2.data.answer_text import normalize_answer
from transformers_glipv2.data.answers import answer_targets, build_answer_vocabulary
from transformers_glipv2.data.seeding import derive_seed
from transformers_glipv2.evaluation.vqa import answer_accuracy
from transformers_glipv2.modeling_glipv2 import GLIPv2ObjectDetectionOutput
from transformers_glipv2.modeling_glipv2_pretraining import GLIPv2ContrastiveHead
from transformers_glipv2.training.batches import read_batches
from transformers_glipv2.training.data_file import DataFile, load_sources
from transformers_glipv2.training.optimization import parameter_groups

Rows = Sequence[Mapping[str, Any]]
Collate = Callable[[Rows], dict[str, Any]]


# Batches -------------------------------------------------------------------------------------------------------------


class AnswerCollator:
    """
    Adds soft targets of the answers to batches of questions.

    Args:
        collate (`GroundingCollator`): makes the rest of a batch.
        answers (`Sequence[str]`): the vocabulary.
        with_images (`bool`, *optional*, defaults to `True`): `False` blanks the images, for a blind baseline.

    Returns (when called with a list of rows):
        `dict`: what `collate` gives, and `answer_labels` of shape `(batch, answers)`: NaN for rows that ask nothing.
    """

    def __init__(self, collate: Collate, answers: Sequence[str], with_images: bool = True):
        self.collate = collate
        self.answer_ids = {answer: index for index, answer in enumerate(answers)}
        self.with_images = with_images

    def __call__(self, rows: Rows) -> dict[str, Any]:
        batch = self.collate(rows)
        batch["answer_labels"] = answer_targets([row.get("answers", ()) for row in rows], self.answer_ids)
        batch["answer_labels"][[row["kind"] != "vqa" for row in rows]] = math.nan
        return batch if self.with_images else blank(batch)


def blank(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with images of one colour, the mean of all; their sizes stay."""
    return {**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])}


# What an answer head reads of the detector's output.
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
    The batches of `frozen_batches` for the steps of a run: all in one order, then all in another, and so on. What a
    step sees is decided by its number and the seed.
    """
    for step in range(start_step, num_steps):
        epoch, place = divmod(step, len(kept))
        order = random.Random(derive_seed(seed, "epoch", epoch)).sample(range(len(kept)), len(kept))
        batch = kept[order[place]]
        fields = dict(batch["detector_output"])
        for name in ("feature_maps", "fused_feature_maps"):
            fields[name] = tuple(level.float() for level in fields[name])
        yield {"detector_output": GLIPv2ObjectDetectionOutput(**fields), "answer_labels": batch["answer_labels"]}


def head_groups(
    model: nn.Module, learning_rate: float, head: str, head_factor: float, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """
    Parameter groups in which the new head learns faster than the pretrained rest.

    Args:
        model (`nn.Module`): parameters with `requires_grad=False` are left out.
        learning_rate (`float`): of the rest.
        head (`str`): how the names of the head's parameters begin, such as "answer_head.".
        head_factor (`float`): the head's rate over the others'.
        weight_decay (`float`, *optional*, defaults to 0.01): of matrices and convolutions.

    Returns:
        `list[dict]`: as `parameter_groups`, named "base", "base_no_decay", "head", "head_no_decay".
    """
    groups = parameter_groups(model, learning_rate, weight_decay, head_factor, (head,))
    return [{**group, "name": group["name"].replace("text", "head")} for group in groups]


def answers_are_new(model: str, answers: Sequence[str]) -> bool:
    """
    Whether a checkpoint was made for other answers than these, or for the same in another order: then its answer head,
    if it has one, fits in shape at most.

    Args:
        model (`str`): folder or Hub id.
        answers (`Sequence[str]`): the vocabulary that is wanted.
    """
    config = GLIPv2Config.from_pretrained(model)
    return [config.id2label[index] for index in range(config.num_labels)] != list(answers)


def contrastive_head_of(config: GLIPv2Config, weights: Mapping[str, torch.Tensor]) -> GLIPv2ContrastiveHead | None:
    """
    The head of L_inter among the weights of a checkpoint, to start other heads from; `None` where there is none.

    Args:
        config (`GLIPv2Config`): of the checkpoint.
        weights (`Mapping[str, torch.Tensor]`): as `load_other_heads` gives them.
    """
    prefix = "contrastive_head."
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if not own:
        return None
    head = GLIPv2ContrastiveHead(config)
    head.load_state_dict(own)
    return head


def set_shortest_edge(processor: Any, shortest_edge: int) -> None:
    """Lets a processor resize to another short side in pixels, and to a longest one in the same proportion."""
    size = processor.image_processor.size
    longest_edge = round(shortest_edge * size["longest_edge"] / size["shortest_edge"])
    processor.image_processor.size = SizeDict(shortest_edge=shortest_edge, longest_edge=longest_edge)


def steps_of_epochs(sources: Sequence[Any], epochs: int, batch_size: int) -> int:
    """
    Steps in which as many rows are drawn as `epochs` passes over all sources have.

    Raises:
        ValueError: when a source is endless.
    """
    if not all(hasattr(source, "__len__") for source in sources):
        raise ValueError("a source is endless, and so is an epoch; give `--num_steps`.")
    return -(-epochs * sum(len(source) for source in sources) // batch_size)


# Data ----------------------------------------------------------------------------------------------------------------


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


def evaluation_rows(data: DataFile, kind: str) -> list[dict[str, Any]] | None:
    """
    The rows of a data file's `evaluation`, which here is a source with `max_images`; `None` where there is none.

    Args:
        data (`DataFile`): `evaluation` is {kind, path, ...} as a source, and "max_images", needed where the source is
            endless.
        kind (`str`): of the rows to keep, "vqa" or "caption".

    Returns:
        `list[dict]`: images included, so choose `max_images` by the memory.

    Raises:
        ValueError: when the source is endless and `max_images` is missing, or no row is left.
    """
    if data.evaluation is None:
        return None
    source = {name: value for name, value in data.evaluation.items() if name != "max_images"}
    if "kind" not in source:
        raise ValueError(f"`evaluation` is {data.evaluation}; it needs the `kind` of its data, as a source does.")
    ((dataset,), _), count = load_sources(DataFile(data.folder, [source])), data.evaluation.get("max_images")
    if count is None and not hasattr(dataset, "__len__"):
        raise ValueError("the `evaluation` of the data file is endless; give it `max_images`.")
    count = len(dataset) if count is None else min(count, len(dataset)) if hasattr(dataset, "__len__") else count
    rows = [row for row in map(dataset.__getitem__, range(count)) if row["kind"] == kind]
    if not rows:
        raise ValueError(f"none of the {count} rows of `evaluation` is of kind {kind!r}.")
    return rows


def best_constant_answers(rows: Rows) -> dict[str, float]:
    """
    What the best single answer to each type of question would score, without looking at anything.

    Returns:
        `dict[str, float]`: in percent, "accuracy" over all questions and "accuracy_TYPE" of each type.
    """
    by_type = defaultdict(list)
    for row in rows:
        by_type[row.get("question_type", "any")].append(row["answers"])
    chosen = {}
    for name, answers in by_type.items():
        candidates = {answer for own in answers for answer, _ in Counter(own).most_common(1)}
        # Sorted, so that ties fall the same way each time.
        chosen[name] = max(sorted(candidates), key=lambda one: sum(answer_accuracy(one, own) for own in answers))
    return answer_scores([(row, chosen[row.get("question_type", "any")]) for row in rows])


def answer_scores(pairs: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, float]:
    """
    VQA accuracy of (row, answer) pairs, in percent: "accuracy" over all, "accuracy_TYPE" for each `question_type`.
    """
    scores = defaultdict(list)
    for row, answer in pairs:
        score = 100 * answer_accuracy(answer, row["answers"])
        for name in ("accuracy", f"accuracy_{row['question_type']}") if "question_type" in row else ("accuracy",):
            scores[name].append(score)
    return {name: sum(values) / len(values) for name, values in sorted(scores.items())}


# Scores --------------------------------------------------------------------------------------------------------------


class AnswerEvaluator:
    """
    VQA accuracy of a model on rows, over all processes.

    Args:
        accelerator (`Accelerator`): shares out the rows.
        processor (`GLIPv2Processor`).
        rows (`Sequence[Mapping]`): of kind "vqa".
        with_images (`bool`, *optional*, defaults to `True`): `False` blanks them.
        progress (`bool`, *optional*, defaults to `True`): show bars.

    Returns (when called with a prepared model in eval mode):
        `dict[str, float]`: as `answer_scores`, the same on every process.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        processor: Any,
        rows: Rows,
        with_images: bool = True,
        progress: bool = True,
    ):
        self.accelerator = accelerator
        self.processor = processor
        self.rows = rows
        self.with_images = with_images
        self.progress = progress and accelerator.is_main_process

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        answers = self.accelerator.unwrap_model(model).config.id2label
        found = []
        for index, row in own_rows(self.accelerator, self.rows, self.progress):
            inputs = self.processor(
                images=[row["image"]], text=[row["question"]], return_tensors="pt", truncation=True
            )
            inputs = (dict(inputs) if self.with_images else blank(dict(inputs))).items()
            with self.accelerator.autocast():
                logits = model(**{name: value.to(self.accelerator.device) for name, value in inputs}).answer_logits
            found.append((index, answers[int(logits[0].argmax())]))
        found = dict(gather_object(found))
        return answer_scores([(self.rows[index], answer) for index, answer in sorted(found.items())])


def own_rows(accelerator: Accelerator, rows: Rows, progress: bool) -> list[tuple[int, Mapping[str, Any]]]:
    """The rows of this process with their numbers; all processes get equally many, for their forwards may wait."""
    count = -(-len(rows) // accelerator.num_processes)
    first = accelerator.process_index * count
    numbers = [(first + place) % len(rows) for place in range(count)]
    return tqdm([(number, rows[number]) for number in numbers], desc="evaluation", disable=not progress, leave=False)
