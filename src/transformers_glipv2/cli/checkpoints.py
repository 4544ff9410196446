"""Checkpoints as scripts load them for use: with every head that is asked for."""

from typing import Any

from transformers import PreTrainedModel

from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.conversion.released import resolve_model


def load_checkpoint(model_class: type[PreTrainedModel], source: str, device: Any = "cpu") -> tuple[Any, Any]:
    """
    A model in evaluation mode, and its processor.

    Args:
        model_class (`type`): such as `GLIPv2ForObjectDetection`.
        source (`str`): released name, folder or Hub id.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`).

    Returns:
        `tuple`: the model and the `GLIPv2Processor`.

    Raises:
        ConnectionError, OSError: when a released name cannot be downloaded, see `resolve_model`.
        ValueError: when the checkpoint lacks weights of the class, such as a mask head, so that the model would
            answer from random numbers.
    """
    source = resolve_model(source)
    loading: Any = model_class.from_pretrained(source, output_loading_info=True)
    model, loaded = loading
    missing = sorted(loaded["missing_keys"])
    if missing:
        heads = ", ".join(sorted({name.split(".")[0] for name in missing}))
        raise ValueError(
            f"{source} has no weights for {heads} ({len(missing)} tensors such as {missing[0]}); use a checkpoint "
            "that was trained for this task, or train the head first."
        )
    return model.to(device).eval(), GLIPv2Processor.from_pretrained(source)
