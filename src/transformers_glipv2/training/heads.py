"""What training keeps, reuses or starts anew of the heads of a checkpoint."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from transformers_glipv2.configuration_glipv2 import GLIPv2Config
from transformers_glipv2.modeling_glipv2_pretraining import GLIPv2ContrastiveHead

# Parameters of answer heads that have a row for each answer.
ANSWER_ROWS = ("classifier.weight", "classifier.bias", "region_attention.label_embeddings.weight")


def load_other_heads(source: str | Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint that belong to heads which a class does not have.

    Args:
        source (`str` or `Path`): folder or Hub id of a checkpoint in safetensors files.
        model (`PreTrainedModel`): of the class in question.

    Returns:
        `dict[str, torch.Tensor]`: name -> tensor; empty where the class has every head of the checkpoint.

    Raises:
        FileNotFoundError: when there are no safetensors files.
    """
    own = model.state_dict().keys()
    heads = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ()))
    return _load_tensors(source, lambda name: name not in own and heads.match(name) is not None)


def contrastive_head_of(config: GLIPv2Config, weights: Mapping[str, torch.Tensor]) -> GLIPv2ContrastiveHead | None:
    """
    The head of L_inter among the weights of a checkpoint, which other heads can start from; `None` where there is
    none.

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


def answers_are_new(model: str, answers: Sequence[str]) -> bool:
    """
    Whether a checkpoint was made for other answers than these, or for the same in another order: then its answer head,
    if it has one, fits in shape at most.

    Args:
        model (`str`): folder or Hub id.
        answers (`Sequence[str]`): the vocabulary that is wanted.
    """
    config = GLIPv2Config.from_pretrained(model)
    labels: Any = config.id2label or {}
    return [labels[index] for index in range(len(labels))] != list(answers)


@torch.no_grad()
def keep_known_answers(source: str | Path, model: PreTrainedModel) -> list[str]:
    """
    Gives an answer head that was made for other answers what its checkpoint learned: the rows of the answers that it
    knows, and all that is not of single answers. Answers that it does not know keep what they have.

    Args:
        source (`str` or `Path`): folder or Hub id of the checkpoint that `model` was loaded from.
        model (`PreTrainedModel`): with an `answer_head`; changed in place.

    Returns:
        `list[str]`: the answers that are known; where there are none, or the checkpoint has no head of this kind,
            nothing is changed.
    """
    labels: Any = GLIPv2Config.from_pretrained(source).id2label or {}
    known = {answer: index for index, answer in labels.items()}
    saved = _load_tensors(source, lambda name: name.startswith("answer_head."))
    own = {name: value for name, value in model.state_dict().items() if name.startswith("answer_head.")}
    if saved.keys() != own.keys():
        return []
    wanted: Any = model.config.id2label or {}
    kept = [(index, known[answer]) for index, answer in wanted.items() if answer in known]
    if not kept:
        return []
    new, old = torch.tensor(kept).unbind(1)
    for name, value in own.items():
        if name.removeprefix("answer_head.") in ANSWER_ROWS:
            value[new] = saved[name][old].to(value)
        else:
            value.copy_(saved[name])
    return [wanted[index] for index, _ in kept]


def _load_tensors(source: str | Path, is_wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint whose names are wanted."""
    tensors: dict[str, torch.Tensor] = {}
    for file in _weight_files(str(source)):
        with safe_open(file, "pt") as weights:
            names = [name for name in weights.keys() if is_wanted(name)]  # noqa: SIM118
            tensors |= {name: weights.get_tensor(name) for name in names}
    return tensors


def _weight_files(source: str) -> list[str]:
    options = {"_raise_exceptions_for_missing_entries": False}
    whole = cached_file(source, "model.safetensors", **options)
    if whole is not None:
        return [whole]
    index = cached_file(source, "model.safetensors.index.json", **options)
    if index is None:
        raise FileNotFoundError(f"{source} holds no model.safetensors; save the model with `save_pretrained` first.")
    return get_checkpoint_shard_files(source, index)[0]
