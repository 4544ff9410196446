"""Training of masks: average precision of masks while a model trains, and checkpoints that keep their other heads."""

import re
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

REPORTED = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@100")


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
    heads = re.compile("|".join(model._keys_to_ignore_on_load_unexpected))
    tensors = {}
    for file in _weight_files(str(source)):
        with safe_open(file, "pt") as weights:
            names = [name for name in weights.keys() if name not in own and heads.match(name)]  # noqa: SIM118
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
