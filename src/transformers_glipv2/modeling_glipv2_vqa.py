"""
Answers to questions about an image, with the boxes of what the question names in the same forward pass.

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
from transformers.utils import can_return_tuple

from .configuration_glipv2 import GLIPv2Config
from .layers.region_attention import GLIPv2RegionWordAttention, location_features
from .losses import answer_loss
from .modeling_glipv2 import GLIPv2ForObjectDetection, GLIPv2FreezableDetector, GLIPv2ObjectDetectionOutput, Labels
from .modeling_glipv2_pretraining import GLIPv2ContrastiveHead


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


def require_fusion(config: GLIPv2Config, name: str) -> None:
    """Raises `ValueError` for a configuration in which words never see the image."""
    if not config.use_fusion:
        raise ValueError(f"{name} reads fused words, and with `use_fusion=False` words never see the image.")


class GLIPv2WordEvidence(nn.Module):
    """
    Tells each word what the detector found for it: how surely, how much of it, where, and how it looks there; and how
    what is named before the word lies from what is named after it, which "left of" asks about.

    A word's own fusion sees the image through a softmax over all locations; whether a thing is there, how often and
    on which side is plainer in S = O P^T and in the boxes.

    Args:
        config: sizes and options.
    """

    # Centre x, centre y, width and height of the place, the two strengths, then x and y from what is named after the
    # word to what is named before it.
    num_evidence_features = 8

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        text_dim = config.text_config.hidden_size
        self.projection = nn.Linear(2 * config.d_model + self.num_evidence_features, text_dim)
        self.norm = nn.LayerNorm(text_dim, eps=config.layer_norm_eps)

    def forward(self, output: GLIPv2ObjectDetectionOutput, looks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            output: of the detector; its scores and boxes get no gradients.
            looks: of its maps, from `location_features`.

        Returns:
            The fused words with what was found, `(batch, tokens, text_dim)`, and the signs alone,
            `(batch, tokens, num_evidence_features)`.
        """
        text = output.fused_text
        logits, centerness = output.logits.detach(), output.centerness.detach()[..., None]
        scores = logits + F.logsigmoid(centerness)
        attention = scores.softmax(1).transpose(1, 2)
        looks = (attention @ looks.to(scores.dtype)).to(text.dtype)
        # Near unit size all of them: a layer that starts small overlooks small inputs.
        places = 4 * (attention @ output.pred_boxes.detach().to(scores.dtype) - 0.5)
        # Of the best place, and of all places together: some anchors of each object, so it grows with their number.
        best = scores.amax(1).clamp(min=-8) + 2
        confidence = logits.sigmoid() * centerness.sigmoid()
        amount = 3 * confidence.sum(1).log1p() - 3
        confidence = confidence.amax(1)
        if output.attention_mask is not None:
            confidence = confidence * output.attention_mask
        way = 2 * relative_offset(places[..., :2], confidence)
        signs = [places, best[..., None], amount[..., None], way]
        signs = torch.cat(signs, dim=-1).to(text.dtype)
        return self.norm(text + self.projection(torch.cat([looks, signs], dim=-1))), signs


def relative_offset(places: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """
    For each word the way from what is named after it to what is named before it.

    Args:
        places: `(batch, tokens, 2)`, x and y of what each word names, 0 in the middle of the image.
        confidence: `(batch, tokens)` in [0, 1], how much each word counts. Where no word on a side counts much, the
            middle of the image stands for it.

    Returns:
        In the shape and the units of `places`.
    """
    weighted = torch.cat([places, torch.ones_like(places[..., :1])], dim=-1) * confidence[..., None]
    until = weighted.cumsum(1)
    before, after = until - weighted, until[:, -1:] - until
    before, after = (side[..., :2] / (side[..., 2:] + 1e-3) for side in (before, after))
    return before - after


class GLIPv2AnswerHead(nn.Module):
    """
    Scores of the answers from fused words: what the detector found joins them, they look for what an answer may name,
    attention pooling, which starts as the mean, and two layers. The signs of the evidence are pooled too, as they are.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        text_dim = config.text_config.hidden_size
        self.num_heads = config.text_config.num_attention_heads
        self.dropout = config.text_config.hidden_dropout_prob
        self.evidence = GLIPv2WordEvidence(config)
        self.region_attention = GLIPv2RegionWordAttention(config, config.num_labels)
        self.token_weight = nn.Linear(text_dim, self.num_heads)
        self.token_value = nn.Linear(text_dim, 2 * text_dim)
        self.dense = nn.Linear(2 * text_dim + self.num_heads * self.evidence.num_evidence_features, 2 * text_dim)
        self.norm = nn.LayerNorm(2 * text_dim, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(2 * text_dim, config.num_labels)

    def forward(self, output: GLIPv2ObjectDetectionOutput) -> torch.Tensor:
        """
        Args:
            output: of the detector; its boxes and scores get no gradients from answers.

        Returns:
            `(batch, answers)`, float32.
        """
        looks = location_features(output.feature_maps, output.fused_feature_maps)
        text, signs = self.evidence(output, looks)
        # Where padded pixels are masked, the detector gives them the lowest scores, and words look past them.
        is_padding = (output.logits.detach() <= -50000).all(2)
        places = self.region_attention.places(
            looks,
            output.feature_maps,
            output.centerness.detach().masked_fill(is_padding, -50000),
            output.pred_boxes[..., :2].detach(),
        )
        text, named = self.region_attention(text, places)
        mask = text.new_ones(text.shape[:2]) if output.attention_mask is None else output.attention_mask.to(text.dtype)
        pooled = self.pool(text, signs, mask.bool())
        hidden = self.norm(F.gelu(self.dense(F.dropout(pooled, self.dropout, self.training))))
        named = (mask[..., None] * named).sum(1) / mask.sum(1, keepdim=True)
        scores = self.classifier(
            F.dropout(hidden, self.dropout, self.training)
        ) + self.region_attention.label_embeddings(named)
        return scores.float()

    def pool(self, text: torch.Tensor, signs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        Args:
            text: `(batch, tokens, text_dim)`.
            signs: `(batch, tokens, num_evidence_features)`.
            mask: boolean `(batch, tokens)`, `False` at padding.

        Returns:
            What the words say, in the mean of each head, and the signs of each head's words:
            `(batch, 2 * text_dim + num_heads * num_evidence_features)`.
        """
        weights = self.token_weight(text).float()
        weights = weights.masked_fill(~mask[..., None], torch.finfo(weights.dtype).min)
        weights = weights.softmax(1).to(text.dtype)
        values = F.gelu(self.token_value(text)).unflatten(-1, (self.num_heads, -1))
        said = (weights[..., None] * values).sum(1)
        return torch.cat([said.flatten(1), (weights.transpose(1, 2) @ signs).flatten(1)], dim=1)


class GLIPv2ForVisualQuestionAnswering(GLIPv2FreezableDetector, GLIPv2ForObjectDetection):
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
            init.constant_(module.classifier.bias, self._first_odds())
            # Names whisper at first: most answers name nothing that is to be seen.
            init.zeros_(module.region_attention.gate.weight)
            init.constant_(module.region_attention.gate.bias, 1 / module.region_attention.num_heads)

    def _first_odds(self) -> float:
        """One answer of all is right; from even odds a classifier would have to learn that first."""
        return -math.log(max(2, self.config.num_labels) - 1)

    @torch.no_grad()
    def start_from_words(self, tokenizer: Any, contrastive_head: GLIPv2ContrastiveHead | None = None) -> None:
        """
        Starts a new classifier from the words of its answers: half of what scores an answer becomes what the text
        encoder makes of it, so that what is learnt of one answer helps those that mean something alike.

        Args:
            tokenizer: of the text encoder.
            contrastive_head: of `GLIPv2ForPreTraining`: regions and answers are then compared from the start as
                L_inter learnt to.
        """
        answers = [self.config.id2label[index] for index in range(self.config.num_labels)]
        inputs = tokenizer(answers, padding=True, return_special_tokens_mask=True, return_tensors="pt").to(self.device)
        words = inputs["attention_mask"] * (1 - inputs.pop("special_tokens_mask"))
        # An answer without a known word stands for its special tokens.
        words = torch.where(words.any(1, keepdim=True), words, inputs["attention_mask"])[..., None]
        features = self.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        meanings = (features * words).sum(1) / words.sum(1)
        meanings = meanings - meanings.mean(0)
        classifier, region_attention = self.answer_head.classifier, self.answer_head.region_attention
        # Whatever it was trained to before were other answers.
        nn.init.normal_(classifier.weight, std=self.config.initializer_range)
        nn.init.normal_(region_attention.label_embeddings.weight, std=self.config.initializer_range)
        nn.init.constant_(classifier.bias, self._first_odds())
        meanings = meanings / meanings.std().clamp(min=1e-6)
        classifier.weight[:, : meanings.shape[1]] = meanings * self.config.initializer_range
        if contrastive_head is not None:
            region_attention.image_projection.load_state_dict(contrastive_head.image_projection.state_dict())
            projected = F.normalize(contrastive_head.text_projection(features), dim=-1)
            region_attention.label_embeddings.weight.copy_(F.normalize((projected * words).sum(1), dim=-1))

    @can_return_tuple
    def forward(
        self,
        *args,
        labels: Labels | None = None,
        answer_labels: torch.FloatTensor | None = None,
        detector_output: GLIPv2ObjectDetectionOutput | None = None,
        **kwargs,
    ) -> GLIPv2VisualQuestionAnsweringOutput:
        """
        As `GLIPv2ForObjectDetection.forward`, the question as the text; the output adds `answer_logits`.

        Args:
            labels: boxes of the question's words, for training; ignored while the detector is frozen.
            answer_labels: `(batch, answers)` in [0, 1], for training: the soft score of each answer (VQA v2: 0.3, 0.6,
                0.9 or 1 for one, two, three or more of ten annotators); NaN for texts that are no questions, such as
                those of detection in the same batch. `loss_dict` adds loss_answer.
            detector_output: what the detector made of images and questions, in place of both, for a head that is
                trained over it again and again while it is frozen.

        Raises:
            ValueError: when a side is missing, or batches or labels do not fit.
        """
        kwargs.pop("return_dict", None)
        output = detector_output
        if output is None:
            with self.detector_gradients():
                output = super().forward(
                    *args, labels=None if self.detector_is_frozen else labels, **kwargs, return_dict=True
                )
        logits = self.answer_head(output)
        fields = {name: value for name, value in output.items() if name not in ("loss", "loss_dict", "answer_logits")}
        losses = dict(output.loss_dict or {})
        if answer_labels is not None:
            losses["loss_answer"] = answer_loss(logits, answer_labels)
        if losses:
            fields |= {"loss": sum(losses.values()), "loss_dict": losses}
        return GLIPv2VisualQuestionAnsweringOutput(**fields, answer_logits=logits)


__all__ = ["GLIPv2ForVisualQuestionAnswering", "GLIPv2VisualQuestionAnsweringOutput", "answer_config"]
