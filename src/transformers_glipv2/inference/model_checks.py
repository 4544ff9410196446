"""What is checked of a model before anything is asked of it: its class, its head, and that its weights are finite."""

import weakref
from typing import Any

import torch
from torch import nn

from .text_features import plain_tensors, sample_values

# Head, what it gives, and the class to load it with.
HEADS = {
    "detection_head": ("boxes", "GLIPv2ForObjectDetection"),
    "mask_head": ("masks", "GLIPv2ForInstanceSegmentation"),
    "answer_head": ("answers", "GLIPv2ForVisualQuestionAnswering"),
    "caption_head": ("captions", "GLIPv2ForConditionalGeneration"),
}
_checked: "weakref.WeakKeyDictionary[nn.Module, tuple]" = weakref.WeakKeyDictionary()


def check_model(model: Any, head: str = "detection_head") -> None:
    """
    Raises unless a model can give what its head is for.

    Args:
        model: a GLIPv2 model, or a wrapper of one.
        head: one of `HEADS`; the detection head is always needed.

    Raises:
        TypeError: for a class without the head.
        ValueError: when the head, or the network below it, was not in the checkpoint and is newly initialised, or when
            weights are not finite.
    """
    for name in dict.fromkeys(("detection_head", head)):
        if not hasattr(model, name):
            gives, class_name = HEADS[name]
            raise TypeError(
                f"{type(model).__name__} predicts no {gives}; load the model with `{class_name}.from_pretrained`."
            )
    missing = untouched_weights(model)
    for name in dict.fromkeys(("model", "detection_head", head)):
        own = [key for key in missing if key.startswith(f"{name}.")]
        if own:
            gives = "features" if name == "model" else HEADS[name][0]
            raise ValueError(
                f"The checkpoint has no `{name}` ({len(own)} newly initialised tensors, such as `{own[0]}`), so its "
                f"{gives} would be random. Load a checkpoint that has one, or train it first."
            )
    check_weights(model)


def default_labels(model: Any) -> list[str]:
    """
    The classes that a model was fine-tuned for, `config.labels`.

    Raises:
        ValueError: when it was fine-tuned for none, so that it must be told what to look for.
    """
    labels = getattr(model.config, "labels", None)
    if not labels:
        raise ValueError(
            "there are no labels to look for, and the model was not fine-tuned for classes of its own; pass labels "
            'such as ["person", "traffic light"].'
        )
    return list(labels)


def record_new_weights(model: nn.Module, names: Any) -> None:
    """Remembers which parameters a checkpoint lacked, by samples of the values that they were initialised with."""
    parameters = dict(model.named_parameters())
    model._new_weights = {
        name: sample_values(parameters[name]).clone()
        for name in sorted(names)
        if name in parameters and not parameters[name].is_meta
    }


def untouched_weights(model: nn.Module) -> list[str]:
    """Parameters that the checkpoint lacked, of modules of which no such parameter was trained or loaded since."""
    owner = next((part for part in model.modules() if "_new_weights" in part.__dict__), None)
    if owner is None:
        return []
    parameters = dict(owner.named_parameters())
    touched, untouched = set(), []
    for name, initial in owner._new_weights.items():
        now = parameters.get(name)
        if now is None or now.is_meta:
            continue
        same = torch.equal(sample_values(now), initial.to(now))
        untouched.append(name) if same else touched.add(name.split(".")[0])
    return [name for name in untouched if name.split(".")[0] not in touched]


@torch.no_grad()
def check_weights(model: nn.Module) -> None:
    """
    Raises ValueError, naming the tensor, when a weight is NaN or infinite. A model is looked at again only after its
    weights changed.
    """
    tensors = [
        (name, plain)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        for plain in plain_tensors(tensor)
        if plain.is_floating_point() and plain.numel() and not plain.is_meta
    ]
    state = tuple((tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for _, tensor in tensors)
    if _checked.get(model) == state:
        return
    by_device: dict[torch.device, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in tensors:
        by_device.setdefault(tensor.device, []).append((name, tensor))
    for named in by_device.values():
        # The smallest and the largest value tell, and take no memory; one transfer for all.
        extremes = [torch.stack(tensor.aminmax()).double() for _, tensor in named]
        finite = torch.stack(extremes).isfinite().all(1).tolist()
        if not all(finite):
            raise ValueError(
                f"The weight `{named[finite.index(False)][0]}` of {type(model).__name__} holds NaN or infinity; the "
                "checkpoint is broken (its training may have diverged). Load another one."
            )
    _checked[model] = state


__all__ = ["HEADS", "check_model", "check_weights", "default_labels", "record_new_weights"]
