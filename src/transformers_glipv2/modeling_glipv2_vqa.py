"""
Answers to questions about an image, with the boxes of what the question names in the same forward pass.

The question is the text, and the answer is chosen from a vocabulary, `config.id2label`: `from_pretrained(folder,
**answer_config(["yes", "no", ...]))`. Two heads can do that (`config.answer_head_type`): the paper's, which classifies
the pooled fused tokens (section 4.3), and one that also takes what the detector found for each token, so that it can
be trained over a frozen detector.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .boxes import to_device
from .configuration_glipv2 import GLIPv2Config
from .layers.fusion import BOUND
from .layers.region_attention import POSITION_SCALE, GLIPv2RegionWordAttention, location_features
from .losses import OnHost, answer_loss, unwrapped
from .modeling_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2FreezableDetector,
    GLIPv2ImageFeatures,
    GLIPv2ObjectDetectionOutput,
    GLIPv2PreTrainedModel,
    Labels,
    with_losses,
)
from .modeling_glipv2_pretraining import GLIPv2ContrastiveHead

# Scales and offsets bring the evidence features of a token that names one visible object near 0 and their spread near
# 1, as the normalised features beside them are: a linear layer that starts small overlooks small inputs.

# The highest logit, near the logarithm of the score where that is low, is cut below: exp(-8) = 0.0003 is as good as
# not found, and how much lower it is says nothing. With 2 added, a score of sigmoid(-2) = 0.12 becomes 0.
MIN_LOGIT = -8.0
LOGIT_OFFSET = 2.0
# The scores of all anchors add up to about 1.7 = e - 1 for one object, as several anchors find it: then
# 3 log(1 + sum) - 3 is 0. It is -3 for none and 1.4 for two objects.
AMOUNT_SCALE = 3.0
AMOUNT_OFFSET = -3.0
# Objects that a question compares are half an image apart at most, as a rule.
RELATIVE_OFFSET_SCALE = 2.0
# Confidence that makes a side of a token count as naming something: below, the middle of the image stands for it.
MIN_CONFIDENCE = 1e-3
# At first the attended regions score the labels by 1 in all, beside a classifier of equal size: most answers name
# nothing that can be seen.
INITIAL_LABEL_GATE = 1.0


@dataclass
class GLIPv2VisualQuestionAnsweringOutput(GLIPv2ObjectDetectionOutput):
    """
    Output of `GLIPv2ForVisualQuestionAnswering`: that of `GLIPv2ForObjectDetection` (so `logits` are those of
    locations and tokens, and every post-processing of boxes takes it), and the answers.

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
    """Raises `ValueError` for a configuration in which tokens never see the image."""
    if not config.use_fusion:
        raise ValueError(f"{name} reads fused tokens, and with `use_fusion=False` tokens never see the image.")


# Heads ---------------------------------------------------------------------------------------------------------------


class GLIPv2PooledAnswerHead(nn.Module):
    """The paper's head (section 4.3): the mean of the fused tokens, and a classifier of two layers."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        text_dim = config.text_config.hidden_size
        self.dropout = config.text_config.hidden_dropout_prob
        self.dense = nn.Linear(text_dim, 2 * text_dim)
        self.norm = nn.LayerNorm(2 * text_dim, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(2 * text_dim, config.num_labels)

    def forward(self, output: GLIPv2ObjectDetectionOutput) -> torch.Tensor:
        """
        Args:
            output: of the detector.

        Returns:
            `(batch, answers)`, float32.
        """
        pooled = mean_of_tokens(output.fused_text, token_mask(output))
        hidden = self.norm(F.gelu(self.dense(F.dropout(pooled, self.dropout, self.training))))
        return self.classifier(F.dropout(hidden, self.dropout, self.training)).float()


class GLIPv2WordEvidence(nn.Module):
    """
    Adds to each token what the detector found for it: with which score, how much, where, and with which features; and
    the offset between what is named before the token and what is named after it, which "left of" asks about.

    A token's own fusion sees the image through a softmax over all locations; whether an object is there, how often
    and on which side is plainer in S = O P^T and in the boxes.

    Args:
        config: sizes and options.
    """

    # Centre x, centre y, width and height of the box, the highest score and the amount, then x and y from what is
    # named after the token to what is named before it.
    num_evidence_features = 8

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        text_dim = config.text_config.hidden_size
        self.projection = nn.Linear(2 * config.d_model + self.num_evidence_features, text_dim)
        self.norm = nn.LayerNorm(text_dim, eps=config.layer_norm_eps)

    def forward(
        self, output: GLIPv2ObjectDetectionOutput, features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            output: of the detector; its scores and boxes get no gradients.
            features: of its maps, from `location_features`.

        Returns:
            The fused tokens with what was found, `(batch, tokens, text_dim)`, and the evidence features alone,
            `(batch, tokens, num_evidence_features)`.
        """
        text = output.fused_text
        logits, centerness = output.logits.detach(), output.centerness.detach()[..., None]
        scores = logits + F.logsigmoid(centerness)
        attention = scores.softmax(1).transpose(1, 2)
        features = (attention @ features.to(scores.dtype)).to(text.dtype)
        boxes = POSITION_SCALE * (attention @ output.pred_boxes.detach().to(scores.dtype) - 0.5)
        best = scores.amax(1).clamp(min=MIN_LOGIT) + LOGIT_OFFSET
        confidence = logits.sigmoid() * centerness.sigmoid()
        # Several anchors find each object, so their sum grows with the number of objects.
        amount = AMOUNT_SCALE * confidence.sum(1).log1p() + AMOUNT_OFFSET
        confidence = confidence.amax(1)
        if output.attention_mask is not None:
            confidence = confidence * output.attention_mask
        offset = RELATIVE_OFFSET_SCALE * relative_offset(boxes[..., :2], confidence)
        evidence = torch.cat([boxes, best[..., None], amount[..., None], offset], dim=-1).to(text.dtype)
        return self.norm(text + self.projection(torch.cat([features, evidence], dim=-1))), evidence


def relative_offset(centers: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """
    For each token the offset from what is named after it to what is named before it.

    Args:
        centers: `(batch, tokens, 2)`, x and y of what each token names, 0 in the middle of the image.
        confidence: `(batch, tokens)` in [0, 1], how much each token counts. Where no token on a side counts much, the
            middle of the image stands for it.

    Returns:
        In the shape and the units of `centers`.
    """
    weighted = torch.cat([centers, torch.ones_like(centers[..., :1])], dim=-1) * confidence[..., None]
    until = weighted.cumsum(1)
    before, after = until - weighted, until[:, -1:] - until
    before, after = (side[..., :2] / (side[..., 2:] + MIN_CONFIDENCE) for side in (before, after))
    return before - after


class GLIPv2AnswerHead(nn.Module):
    """
    Our head: what the detector found is added to the fused tokens, they attend to the regions that an answer may
    name, attention pooling (which starts as the mean), and two layers. The evidence features are pooled too, as they
    are.
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
        features = location_features(output.feature_maps, output.fused_feature_maps)
        text, evidence = self.evidence(output, features)
        centerness = output.centerness.detach()
        if output.location_mask is not None:
            centerness = centerness.masked_fill(~output.location_mask, -BOUND)
        locations = self.region_attention.locations(
            features, output.feature_maps, centerness, output.pred_boxes[..., :2].detach()
        )
        text, named = self.region_attention(text, locations)
        mask = token_mask(output)
        pooled = self.pool(text, evidence, mask)
        hidden = self.norm(F.gelu(self.dense(F.dropout(pooled, self.dropout, self.training))))
        scores = self.classifier(F.dropout(hidden, self.dropout, self.training))
        return (scores + self.region_attention.label_embeddings(mean_of_tokens(named, mask))).float()

    def pool(self, text: torch.Tensor, evidence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        Args:
            text: `(batch, tokens, text_dim)`.
            evidence: `(batch, tokens, num_evidence_features)`.
            mask: boolean `(batch, tokens)`, `False` at padding.

        Returns:
            The values and the evidence features, averaged over the tokens with the weights of each head:
            `(batch, 2 * text_dim + num_heads * num_evidence_features)`.
        """
        weights = self.token_weight(text).float()
        weights = weights.masked_fill(~mask[..., None], torch.finfo(weights.dtype).min)
        weights = weights.softmax(1).to(text.dtype)
        values = F.gelu(self.token_value(text)).unflatten(-1, (self.num_heads, -1))
        values = (weights[..., None] * values).sum(1)
        return torch.cat([values.flatten(1), (weights.transpose(1, 2) @ evidence).flatten(1)], dim=1)


def token_mask(output: GLIPv2ObjectDetectionOutput) -> torch.Tensor:
    """Boolean `(batch, tokens)`, `False` at padding."""
    if output.attention_mask is None:
        return torch.ones_like(output.fused_text[..., 0], dtype=torch.bool)
    return output.attention_mask.bool()


def mean_of_tokens(text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `(batch, tokens, dim)` over the tokens where `mask` `(batch, tokens)` is `True`: `(batch, dim)`."""
    mask = mask.to(text.dtype)
    return (mask[..., None] * text).sum(1) / mask.sum(1, keepdim=True)


ANSWER_HEADS = {"pooled": GLIPv2PooledAnswerHead, "evidence": GLIPv2AnswerHead}


def make_answer_head(config: GLIPv2Config) -> nn.Module:
    """The head that `config.answer_head_type` names."""
    return ANSWER_HEADS[config.answer_head_type](config)


def init_answer_head(head: GLIPv2PooledAnswerHead | GLIPv2AnswerHead, num_labels: int) -> None:
    """Sets the initial weights of a head that have rules of their own; weights already loaded are left alone."""
    init.constant_(head.classifier.bias, initial_answer_logit(num_labels))
    if isinstance(head, GLIPv2AnswerHead):
        region_attention = head.region_attention
        init.zeros_(region_attention.gate.weight)
        init.constant_(region_attention.gate.bias, INITIAL_LABEL_GATE / region_attention.num_heads)


def initial_answer_logit(num_labels: int) -> float:
    """One answer of all is right; from even odds a classifier would have to learn that first."""
    return -math.log(max(2, num_labels) - 1)


@torch.no_grad()
def start_answers_from_words(
    model: GLIPv2PreTrainedModel, tokenizer: Any, contrastive_head: GLIPv2ContrastiveHead | None = None
) -> None:
    """
    Starts a new answer head from the words of its answers: half of what scores an answer becomes the text encoder's
    features of it, so that what is learned of one answer helps those of similar meaning.

    Args:
        model: with an `answer_head`; changed in place.
        tokenizer: of the text encoder.
        contrastive_head: of `GLIPv2ForPreTraining`: a head with region attention then compares regions and answers
            from the start as L_inter learned to.
    """
    config, head = model.config, model.answer_head
    answers = [config.id2label[index] for index in range(config.num_labels)]
    inputs = tokenizer(answers, padding=True, return_special_tokens_mask=True, return_tensors="pt").to(model.device)
    words = inputs["attention_mask"] * (1 - inputs.pop("special_tokens_mask"))
    # An answer without a known word stands for its special tokens.
    words = torch.where(words.any(1, keepdim=True), words, inputs["attention_mask"])[..., None]
    features = model.model.get_text_features(inputs["input_ids"], inputs["attention_mask"], return_dict=True)
    features = features.last_hidden_state
    meanings = (features * words).sum(1) / words.sum(1)
    meanings = meanings - meanings.mean(0)
    meanings = meanings / meanings.std().clamp(min=1e-6)
    # Whatever the head was trained to before were other answers.
    nn.init.normal_(head.classifier.weight, std=config.initializer_range)
    nn.init.constant_(head.classifier.bias, initial_answer_logit(config.num_labels))
    head.classifier.weight[:, : meanings.shape[1]] = meanings * config.initializer_range
    if not isinstance(head, GLIPv2AnswerHead):
        return
    region_attention = head.region_attention
    nn.init.normal_(region_attention.label_embeddings.weight, std=config.initializer_range)
    if contrastive_head is not None:
        region_attention.image_projection.load_state_dict(contrastive_head.image_projection.state_dict())
        projected = F.normalize(contrastive_head.text_projection(features), dim=-1)
        region_attention.label_embeddings.weight.copy_(F.normalize((projected * words).sum(1), dim=-1))


# Model ---------------------------------------------------------------------------------------------------------------


class GLIPv2ForVisualQuestionAnswering(GLIPv2FreezableDetector, GLIPv2ForObjectDetection):
    """
    Answers to questions, and the boxes of what the questions name.

    Args:
        config: sizes and options; `id2label` is the vocabulary of answers, `answer_head_type` the kind of head.

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
        self.answer_head = make_answer_head(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2PooledAnswerHead | GLIPv2AnswerHead):
            init_answer_head(module, self.config.num_labels)

    def start_from_words(self, tokenizer: Any, contrastive_head: GLIPv2ContrastiveHead | None = None) -> None:
        """As `start_answers_from_words`."""
        start_answers_from_words(self, tokenizer, contrastive_head)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        image_features: GLIPv2ImageFeatures | None = None,
        text_features: BaseModelOutputWithPooling | torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: Labels | None = None,
        answer_labels: torch.FloatTensor | OnHost | None = None,
        detector_output: GLIPv2ObjectDetectionOutput | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> GLIPv2VisualQuestionAnsweringOutput:
        """
        As `GLIPv2ForObjectDetection.forward`, the question as the text; the output adds `answer_logits`.

        Args:
            labels: boxes of the question's words, for training; ignored after `freeze_detector`.
            answer_labels: `(batch, answers)` in [0, 1], for training: the soft score of each answer (VQA v2: 0.3, 0.6,
                0.9 or 1 for one, two, three or more of ten annotators); NaN for texts that are no questions, such as
                those of detection in the same batch. `loss_dict` adds loss_answer.
            detector_output: what the detector made of images and questions, in place of both, for a head that is
                trained over it again and again while it is frozen.

        Raises:
            ValueError: when a side is missing, or batches or labels do not fit.
        """
        output = detector_output
        if output is None:
            with self.detector_gradients():
                output = super().forward(
                    pixel_values=pixel_values,
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    pixel_mask=pixel_mask,
                    image_features=image_features,
                    text_features=text_features,
                    token_type_ids=token_type_ids,
                    inputs_embeds=inputs_embeds,
                    labels=None if self.detector_is_frozen else labels,
                    output_hidden_states=output_hidden_states,
                    output_attentions=output_attentions,
                    return_dict=True,
                )
        logits = self.answer_head(output)
        losses = dict(output.loss_dict or {})
        if answer_labels is not None:
            losses["loss_answer"] = answer_loss(logits, to_device(unwrapped(answer_labels), logits.device))
        return with_losses(output, losses, GLIPv2VisualQuestionAnsweringOutput, answer_logits=logits)


__all__ = ["GLIPv2ForVisualQuestionAnswering", "GLIPv2VisualQuestionAnsweringOutput", "answer_config"]
