"""
Prompt tuning: a model learns a new task by offsets on the tokens of one prompt, a few kilobytes.

From "Grounded Language-Image Pre-training" (Li et al., CVPR 2022), section 4 ("One model for all detection tasks"):
everything is frozen but P0, the token features that the text encoder gives for the task's prompt. Here the offsets on
them are learned. Every other prompt gives what it gave before.

>>> add_prompt_tuning(model, processor.tokenizer, "raccoon")  # then train the offsets
>>> save_prompt_tuning(model, "raccoon.safetensors")
>>> load_prompt_tuning(another_model, "raccoon.safetensors")

`save_pretrained` of a model with a tuned prompt writes the weights as they were and this file beside them, and
`from_pretrained` reads both, so that a folder works wherever a model is asked for.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

PROMPT_FILE = "prompt_tuning.safetensors"


class GLIPv2PromptTunedTextEncoder(nn.Module):
    """
    A text encoder whose tokens get learned offsets where the text is one certain prompt.

    Args:
        encoder: the text encoder.
        prompt_ids: `(tokens,)`, the prompt's ids with special tokens, without padding.
        prompt: the prompt, to be read by people.
    """

    def __init__(self, encoder: nn.Module, prompt_ids: torch.LongTensor, prompt: str):
        super().__init__()
        self.encoder = encoder
        self.prompt = prompt
        like = next(encoder.parameters())
        self.register_buffer("prompt_ids", prompt_ids.to(like.device), persistent=False)
        self.offsets = nn.Parameter(torch.zeros(len(prompt_ids), encoder.config.hidden_size).to(like))

    @property
    def config(self):
        return self.encoder.config

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.encoder.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        **kwargs: Any,
    ):
        """As the text encoder's forward; texts of `input_ids` that are the prompt, padded or not, get the offsets."""
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if input_ids is None or input_ids.shape[1] < len(self.prompt_ids):
            return outputs
        if attention_mask is not None and attention_mask.ndim == 4:
            if attention_mask.shape[2] != 1:
                return outputs  # a caption, which is read causally, is not the prompt
            attention_mask = attention_mask[:, 0, 0] == 0  # what is added to scores
        is_prompt = self._is_prompt(input_ids, attention_mask)
        added = self._padded_offsets(input_ids.shape[1]) * is_prompt[:, None, None].to(self.offsets.dtype)
        outputs.last_hidden_state = outputs.last_hidden_state + added
        if outputs.get("hidden_states") is not None:
            # Layers that were not asked for are `None`.
            outputs.hidden_states = tuple(None if state is None else state + added for state in outputs.hidden_states)
        return outputs

    def _is_prompt(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch,)`: whether the attended tokens of a text are the prompt."""
        length = len(self.prompt_ids)
        is_prompt = input_ids[:, :length].eq(self.prompt_ids).all(1)
        if attention_mask is None:
            return is_prompt & (input_ids.shape[1] == length)
        attended = attention_mask.bool()
        return is_prompt & attended[:, :length].all(1) & ~attended[:, length:].any(1)

    def _padded_offsets(self, tokens: int) -> torch.Tensor:
        return nn.functional.pad(self.offsets, (0, 0, 0, tokens - len(self.offsets)))


def add_prompt_tuning(model: nn.Module, tokenizer: Any, text: str) -> GLIPv2PromptTunedTextEncoder:
    """
    Gives a model offsets, zero at first, on the tokens of one prompt.

    Args:
        model (`GLIPv2PreTrainedModel`): of any class; changed in place.
        tokenizer: the model's.
        text (`str`): the prompt exactly as it will be asked, for a list of labels as `prompts.label_prompt` joins it.

    Returns:
        `GLIPv2PromptTunedTextEncoder`: the new text encoder; train its `offsets`.

    Raises:
        ValueError: when the model has a tuned prompt already, or the text is too long for it.
    """
    base = _base_model(model)
    if has_prompt_tuning(base):
        raise ValueError(
            f"the model has a tuned prompt already: {base.text_encoder.prompt!r}; take it off with "
            "`remove_prompt_tuning`."
        )
    ids = tokenizer(text, truncation=False)["input_ids"]
    if len(ids) > base.config.max_text_length:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, at most {base.config.max_text_length} fit; tune fewer labels at once, "
            "or tune another part of the model."
        )
    base.text_encoder = GLIPv2PromptTunedTextEncoder(base.text_encoder, torch.tensor(ids), text)
    base.config.tuned_prompt = text
    return base.text_encoder


def save_prompt_tuning(model: nn.Module, file: str | Path) -> None:
    """
    Writes the offsets of a model's tuned prompt.

    Args:
        model (`GLIPv2PreTrainedModel`): with a tuned prompt.
        file (`str` or `Path`): a safetensors file, or a folder to hold `prompt_tuning.safetensors`.

    Raises:
        ValueError: when the model has no tuned prompt.
    """
    encoder = _tuned_encoder(model)
    path = _prompt_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    tensors = {"prompt_ids": encoder.prompt_ids.cpu(), "offsets": encoder.offsets.detach().cpu().contiguous()}
    save_file(tensors, partial, metadata={"format": "pt", "prompt": encoder.prompt})
    os.replace(partial, path)


def load_prompt_tuning(model: nn.Module, file: str | Path) -> str:
    """
    Gives a model the tuned prompt of a file; a tuned prompt that it has is replaced.

    Args:
        model (`GLIPv2PreTrainedModel`): the model that the prompt was tuned for, of any class; changed in place.
        file (`str` or `Path`): as `save_prompt_tuning` wrote it.

    Returns:
        `str`: the prompt to ask.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file holds something else, or the token features of the model have another width.
    """
    path = _prompt_path(file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no tuned prompt at {path}.")
    with safe_open(path, framework="pt") as content:
        names, metadata = set(content.keys()), content.metadata() or {}
        if names != {"prompt_ids", "offsets"} or "prompt" not in metadata:
            raise ValueError(f"{path} is no tuned prompt; it holds {', '.join(sorted(names)[:5])}.")
        prompt_ids, offsets = content.get_tensor("prompt_ids"), content.get_tensor("offsets")
    base = _base_model(model)
    width = base.config.text_config.hidden_size
    if offsets.shape != (len(prompt_ids), width):
        raise ValueError(
            f"the offsets of {path} have shape {tuple(offsets.shape)}, but the model needs ({len(prompt_ids)}, "
            f"{width}); load them into the model that they were tuned for."
        )
    remove_prompt_tuning(base)
    encoder = GLIPv2PromptTunedTextEncoder(base.text_encoder, prompt_ids, metadata["prompt"])
    with torch.no_grad():
        encoder.offsets.copy_(offsets)
    base.text_encoder = encoder.train(base.training)
    base.config.tuned_prompt = encoder.prompt
    return encoder.prompt


def remove_prompt_tuning(model: nn.Module) -> None:
    """Takes a tuned prompt off; without one the model stays as it is."""
    base = _base_model(model)
    if has_prompt_tuning(base):
        base.text_encoder = base.text_encoder.encoder
        base.config.tuned_prompt = None


@contextmanager
def without_wrapper(model: nn.Module) -> Iterator[None]:
    """Within the context the weights of a model with a tuned prompt have the names that they have without."""
    base = getattr(model, "model", model)
    encoder = base.text_encoder
    base.text_encoder = encoder.encoder if isinstance(encoder, GLIPv2PromptTunedTextEncoder) else encoder
    try:
        yield
    finally:
        base.text_encoder = encoder


def untuned_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a model with a tuned prompt, by the names that they have without."""
    return {
        name.replace("text_encoder.encoder.", "text_encoder.", 1): tensor
        for name, tensor in state_dict.items()
        if not name.endswith("text_encoder.offsets")
    }


def has_prompt_tuning(model: nn.Module) -> bool:
    """Whether a model has a tuned prompt."""
    encoder = getattr(getattr(model, "model", model), "text_encoder", None)
    return isinstance(encoder, GLIPv2PromptTunedTextEncoder)


def _base_model(model: nn.Module) -> nn.Module:
    base = getattr(model, "model", model)
    if not hasattr(base, "text_encoder"):
        raise TypeError(f"expected a GLIPv2 model, got {type(model).__name__}.")
    return base


def _tuned_encoder(model: nn.Module) -> GLIPv2PromptTunedTextEncoder:
    if not has_prompt_tuning(model):
        raise ValueError("the model has no tuned prompt; `add_prompt_tuning` gives it one.")
    return _base_model(model).text_encoder


def _prompt_path(file: str | Path) -> Path:
    path = Path(file)
    return path if path.suffix == ".safetensors" else path / PROMPT_FILE


__all__ = [
    "PROMPT_FILE",
    "GLIPv2PromptTunedTextEncoder",
    "add_prompt_tuning",
    "has_prompt_tuning",
    "load_prompt_tuning",
    "remove_prompt_tuning",
    "save_prompt_tuning",
    "untuned_names",
    "without_wrapper",
]
