"""
Answers to questions about a picture, with the boxes of what the question names in the same forward pass.

From the GLIPv2 paper (section 4.3): the question is the text, and the fused words are classified over a vocabulary of
answers. Ours also tells each word what the detector found for it, so that the head can be trained over a frozen
detector. The vocabulary is `config.id2label`: `from_pretrained(folder, **answer_config(["yes", "no", ...]))`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import can_return_tuple

from .configuration_glipv2 import GLIPv2Config
from .fusion import GLIPv2BiAttention, GLIPv2FusedTextLayer
from .modeling_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2ObjectDetectionOutput,
    Labels,
    flatten_levels,
    map_shapes,
    padding_masks,
)


@dataclass
class GLIPv2VisualQuestionAnsweringOutput(GLIPv2ObjectDetectionOutput):
    """
    Output of `GLIPv2ForVisualQuestionAnswering`: that of `GLIPv2ForObjectDetection` (so `logits` are those of
    locations and words, and every post-processing of boxes takes it), and the answers.

    Args:
        answer_logits (`torch.FloatTensor` of shape `(batch, answers)`):
            Score of each answer of `config.id2label`, before the sigmoid.
    """

    answer_logits: torch.FloatTensor | None = None


def answer_config(answers: Sequence[str]) -> dict[str, dict]:
    """
    A vocabulary of answers as a configuration holds it: `id2label` and `label2id`.

    Raises:
        ValueError: for no answers, or an answer that comes twice.
    """
    label2id = {answer: index for index, answer in enumerate(answers)}
    if not label2id or len(label2id) != len(answers):
        twice = next((answer for index, answer in enumerate(answers) if label2id[answer] != index), None)
        problem = "is empty" if twice is None else f"has {twice!r} twice"
        raise ValueError(f"The list of answers {problem}; pass every answer once.")
    return {"id2label": dict(enumerate(answers)), "label2id": label2id}


def answer_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Binary cross entropy against soft targets, summed over the answers of a question and averaged over questions; 0
    where there is none.

    Args:
        logits: `(batch, answers)`.
        targets: `(batch, answers)` in [0, 1]; rows of NaN are no questions and do not count.

    Raises:
        ValueError: when the shapes differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"`answer_labels` must have shape {tuple(logits.shape)} (questions, answers of the vocabulary), not "
            f"{tuple(targets.shape)}."
        )
    asked = ~targets.isnan().any(1)
    losses = F.binary_cross_entropy_with_logits(logits[asked].float(), targets[asked].float(), reduction="sum")
    return losses / asked.sum().clamp(min=1)


class GLIPv2SharedPart:
    """
    Mixin of the models that add a head to the detector: the head can be trained alone, so that one checkpoint holds
    heads that were trained one after the other, over the same weights.
    """

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2ReadingLayer):
            # Words pass the text layer unchanged at first: a random one makes them alike before it is of any use.
            for output in (module.text_layer.attention.output, module.text_layer.output):
                init.zeros_(output.weight)
                init.zeros_(output.bias)

    @property
    def shared_is_frozen(self) -> bool:
        """Whether the head alone is trained: encoders, tower and detection head ask for no gradients."""
        shared = (self.model, self.detection_head)
        return not any(parameter.requires_grad for part in shared for parameter in part.parameters())

    def freeze_shared(self) -> None:
        """Trains the head alone: all else keeps its weights and stays in `eval()` through calls of `train()`."""
        for part in (self.model, self.detection_head):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> nn.Module:
        """As `nn.Module.train`; a frozen shared part stays in evaluation mode, without dropout."""
        super().train(mode)
        if mode and self.shared_is_frozen:
            self.model.eval()
            self.detection_head.eval()
        return self

    def shared_gradients(self) -> torch.set_grad_enabled:
        """A context without gradients where the shared part is frozen; it computes faster there."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.shared_is_frozen)


def require_fusion(config: GLIPv2Config, name: str) -> None:
    """Raises `ValueError` for a configuration in which words never see the picture."""
    if not config.use_fusion:
        raise ValueError(f"{name} reads fused words, and with `use_fusion=False` words never see the picture.")


class GLIPv2ReadingLayer(GradientCheckpointingLayer):
    """A block of a head: words see the maps and each other. Of the fusion only the side of the words is used."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.fusion = GLIPv2BiAttention(config)
        self.text_layer = GLIPv2FusedTextLayer(config)

    def forward(self, text: torch.Tensor, vision: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            text: `(batch, tokens, text_dim)`.
            vision: maps as one sequence `(batch, locations, d_model)`.
            mask: boolean, as `GLIPv2FusedTextLayer.forward` takes it.

        Returns:
            The new text.
        """
        _, text, _ = self.fusion(vision, text, vision_sees_text=False)
        return self.text_layer(text, mask)


class GLIPv2WordEvidence(nn.Module):
    """
    Tells each word what the detector found for it: how surely, how much of it, where, and how it looks there.

    A word's own fusion sees the picture through a softmax over all locations; whether a thing is there, how often and
    on which side is plainer in S = O P^T and in the boxes.

    Args:
        config: sizes and options.
        place_dim: features of a location.
    """

    def __init__(self, config: GLIPv2Config, place_dim: int):
        super().__init__()
        text_dim = config.text_config.hidden_size
        # Beside the place two strengths.
        self.projection = nn.Linear(place_dim + 2, text_dim)
        self.norm = nn.LayerNorm(text_dim, eps=config.layer_norm_eps)

    def forward(
        self, text: torch.Tensor, places: torch.Tensor, logits: torch.Tensor, centerness: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            text: fused words `(batch, tokens, text_dim)`.
            places: what is known of each location, `(batch, anchors, place_dim)`.
            logits, centerness: as in `GLIPv2DetectionFields`.

        Returns:
            The words with what was found, `(batch, tokens, text_dim)`.
        """
        scores = logits + F.logsigmoid(centerness)[..., None]
        found = scores.softmax(1).transpose(1, 2) @ places.to(scores.dtype)
        # Of the best place, and of all places together: some anchors of each object, so it grows with their number.
        best = scores.amax(1) / 8
        amount = (logits.sigmoid() * centerness.sigmoid()[..., None]).sum(1).log1p()
        evidence = torch.cat([found, torch.stack([best, amount], dim=-1)], dim=-1)
        return self.norm(text + self.projection(evidence.to(text.dtype)))


class GLIPv2AnswerHead(nn.Module):
    """
    Scores of the answers from fused words: what the detector found joins them, `config.answer_head_layers` blocks look
    at the places and compare the words, attention pooling, which starts as the mean, and two layers.

    A place is its look before fusion (which L_inter compares with the words of all pictures) and after, and its box.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.config = config
        text_dim = config.text_config.hidden_size
        self.num_heads = config.text_config.num_attention_heads
        self.dropout = config.text_config.hidden_dropout_prob
        self.vision_norms = nn.ModuleList(nn.LayerNorm(config.d_model, eps=config.layer_norm_eps) for _ in range(2))
        place_dim = 2 * config.d_model + 4
        self.evidence = GLIPv2WordEvidence(config, place_dim)
        self.place = nn.Linear(place_dim, config.d_model) if config.answer_head_layers else None
        self.layers = nn.ModuleList(GLIPv2ReadingLayer(config) for _ in range(config.answer_head_layers))
        self.word_weight = nn.Linear(text_dim, self.num_heads)
        self.word_value = nn.Linear(text_dim, 2 * text_dim)
        self.dense = nn.Linear(2 * text_dim, 2 * text_dim)
        self.norm = nn.LayerNorm(2 * text_dim, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(2 * text_dim, config.num_labels)

    def forward(self, output: GLIPv2ObjectDetectionOutput) -> torch.Tensor:
        """
        Args:
            output: of the detector; the boxes get no gradients from answers.

        Returns:
            `(batch, answers)`, float32.
        """
        places = self.places(output)
        text = self.evidence(output.fused_text, places, output.logits.detach(), output.centerness.detach())
        mask = None if output.attention_mask is None else output.attention_mask.bool()
        if len(self.layers):
            text = self.look(text, self.place(places), mask, output)
        pooled = self.pool(text, mask)
        hidden = self.norm(F.gelu(self.dense(F.dropout(pooled, self.dropout, self.training))))
        return self.classifier(F.dropout(hidden, self.dropout, self.training)).float()

    def look(
        self, text: torch.Tensor, vision: torch.Tensor, mask: torch.Tensor | None, output: GLIPv2ObjectDetectionOutput
    ) -> torch.Tensor:
        """The words after the blocks; `vision` is `(batch, anchors, d_model)`, the rest as in `forward`."""
        mask = None if mask is None else mask[:, None, None, :]
        if not self.config.mask_padded_pixels:
            for layer in self.layers:
                text = layer(text, vision, mask)
            return text
        # One by one, so that words do not look at padding.
        shapes = map_shapes(output.fused_feature_maps)
        masks = padding_masks(output.image_sizes, shapes, self.config.anchor_strides)
        own = torch.cat([levels.flatten(1) for levels in masks], dim=1)
        texts = list(text.split(1))
        for picture, kept in enumerate(own):
            for layer in self.layers:
                words = None if mask is None else mask[picture : picture + 1]
                texts[picture] = layer(texts[picture], vision[picture : picture + 1, kept], words)
        return torch.cat(texts)

    def places(self, output: GLIPv2ObjectDetectionOutput) -> torch.Tensor:
        """`(batch, anchors, 2 * d_model + 4)`: both looks, normalised, and the box of each location."""
        maps = (output.feature_maps, output.fused_feature_maps)
        looks = [norm(flatten_levels(levels)) for norm, levels in zip(self.vision_norms, maps, strict=True)]
        return torch.cat([*looks, output.pred_boxes.detach().to(looks[0].dtype)], dim=-1)

    def pool(self, text: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Words `(batch, tokens, text_dim)`, boolean `(batch, tokens)` to `(batch, 2 * text_dim)`."""
        weights = self.word_weight(text).float()
        if mask is not None:
            weights = weights.masked_fill(~mask[..., None], torch.finfo(weights.dtype).min)
        weights = weights.softmax(1).to(text.dtype)
        values = F.gelu(self.word_value(text)).unflatten(-1, (self.num_heads, -1))
        return (weights[..., None] * values).sum(1).flatten(1)


class GLIPv2ForVisualQuestionAnswering(GLIPv2SharedPart, GLIPv2ForObjectDetection):
    """
    Answers to questions, and the boxes of what the questions name.

    Args:
        config: sizes and options; `id2label` is the vocabulary of answers.

    Raises:
        ValueError: for a configuration without fusion.

    Example:
        >>> model = GLIPv2ForVisualQuestionAnswering.from_pretrained(folder)
        >>> outputs = model(**processor(images=image, text="what color is the cat?"))
        >>> model.config.id2label[outputs.answer_logits[0].argmax().item()]
        'black'
        >>> processor.post_process_phrase_grounding(outputs, text="what color is the cat?")
    """

    def __init__(self, config: GLIPv2Config):
        require_fusion(config, type(self).__name__)
        super().__init__(config)
        self.answer_head = GLIPv2AnswerHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2AnswerHead):
            # One answer of all is right; from even odds the classifier would have to learn that first.
            init.constant_(module.classifier.bias, -math.log(max(2, self.config.num_labels) - 1))

    @torch.no_grad()
    def start_from_words(self, tokenizer: Any) -> None:
        """
        Starts a new classifier from the words of its answers: half of what scores an answer becomes what the text
        encoder makes of it, so that what is learnt of one answer helps those that mean something alike.

        Args:
            tokenizer: of the text encoder.
        """
        answers = [self.config.id2label[index] for index in range(self.config.num_labels)]
        inputs = tokenizer(answers, padding=True, return_special_tokens_mask=True, return_tensors="pt").to(self.device)
        words = inputs["attention_mask"] * (1 - inputs.pop("special_tokens_mask"))
        # An answer without a known word stands for its special tokens.
        words = torch.where(words.any(1, keepdim=True), words, inputs["attention_mask"])[..., None]
        features = self.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        meanings = (features * words).sum(1) / words.sum(1)
        meanings = meanings - meanings.mean(0)
        weight = self.answer_head.classifier.weight
        weight[:, : meanings.shape[1]] = meanings / meanings.std().clamp(min=1e-6) * self.config.initializer_range

    @can_return_tuple
    def forward(
        self,
        *args,
        labels: Labels | None = None,
        answer_labels: torch.FloatTensor | None = None,
        **kwargs,
    ) -> GLIPv2VisualQuestionAnsweringOutput:
        """
        As `GLIPv2ForObjectDetection.forward`, the question as the text; the output adds `answer_logits`.

        Args:
            labels: boxes of the question's words, for training; ignored while the shared part is frozen.
            answer_labels: `(batch, answers)` in [0, 1], for training: the soft score of each answer (VQA v2: 0.3, 0.6,
                0.9 or 1 for one, two, three or more of ten annotators); NaN for texts that are no questions, such as
                those of detection in the same batch. `loss_dict` adds loss_answer.

        Raises:
            ValueError: when a side is missing, or batches or labels do not fit.
        """
        kwargs.pop("return_dict", None)
        with self.shared_gradients():
            output = super().forward(
                *args, labels=None if self.shared_is_frozen else labels, **kwargs, return_dict=True
            )
        logits = self.answer_head(output)
        fields = {name: value for name, value in output.items() if name not in ("loss", "loss_dict")}
        losses = dict(output.loss_dict or {})
        if answer_labels is not None:
            losses["loss_answer"] = answer_loss(logits, answer_labels)
        if losses:
            fields |= {"loss": sum(losses.values()), "loss_dict": losses}
        return GLIPv2VisualQuestionAnsweringOutput(**fields, answer_logits=logits)


__all__ = ["GLIPv2ForVisualQuestionAnswering", "GLIPv2VisualQuestionAnsweringOutput", "answer_config"]
