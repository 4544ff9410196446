"""Pre-training with answers and captions beside it: every loss over one detector, on one batch."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .boxes import to_device
from .configuration_glipv2 import GLIPv2Config
from .distributed import mean_over_processes, num_processes
from .losses import ContrastGradients, OnHost, answer_loss, caption_loss, next_tokens, unwrapped
from .modeling_glipv2 import (
    GLIPv2ImageFeatures,
    GLIPv2ModelOutput,
    GLIPv2ObjectDetectionOutput,
    Labels,
    with_losses,
    word_embedding_name,
)
from .modeling_glipv2_captioning import (
    GLIPv2CaptionHead,
    init_caption_head,
    make_visual_states,
    read_captions,
    special_token_ids,
)
from .modeling_glipv2_pretraining import GLIPv2ContrastiveHead, GLIPv2ForPreTraining
from .modeling_glipv2_vqa import (
    GLIPv2AnswerHead,
    GLIPv2PooledAnswerHead,
    init_answer_head,
    make_answer_head,
    require_fusion,
    start_answers_from_words,
)


class GLIPv2ForJointTraining(GLIPv2ForPreTraining):
    """
    The model of pre-training with an answer head and a caption head more. `GLIPv2ForPreTraining`,
    `GLIPv2ForVisualQuestionAnswering` and `GLIPv2ForConditionalGeneration` each load their part of what is saved.

    Args:
        config: sizes and options; `id2label` is the vocabulary of answers.

    Raises:
        ValueError: for a configuration without fusion.
    """

    def __init__(self, config: GLIPv2Config):
        require_fusion(config, type(self).__name__)
        super().__init__(config)
        self.answer_head = make_answer_head(config)
        self.caption_head = GLIPv2CaptionHead(config)
        embeddings = word_embedding_name(self)
        self._tied_weights_keys = {f"{head}.decoder.weight": embeddings for head in ("mlm_head", "caption_head")}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2PooledAnswerHead | GLIPv2AnswerHead):
            init_answer_head(module, self.config.num_labels)
        elif isinstance(module, GLIPv2CaptionHead):
            init_caption_head(module)

    def start_from_words(self, tokenizer: Any, contrastive_head: GLIPv2ContrastiveHead | None = None) -> None:
        """As `start_answers_from_words`."""
        start_answers_from_words(self, tokenizer, contrastive_head)

    def set_special_tokens(self, tokenizer: Any) -> None:
        """Captions begin, end and are padded as this tokenizer's texts are; saved with the configuration."""
        for name, value in special_token_ids(tokenizer).items():
            setattr(self.config.text_config, name, value)

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
        mlm_labels: torch.LongTensor | OnHost | None = None,
        answer_labels: torch.FloatTensor | OnHost | None = None,
        caption_labels: torch.LongTensor | OnHost | None = None,
        contrast: ContrastGradients | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> GLIPv2ObjectDetectionOutput:
        """
        As `GLIPv2ForPreTraining.forward`; `loss_dict` adds loss_answer and loss_caption where an example has such.

        Args:
            answer_labels: as of `GLIPv2ForVisualQuestionAnswering.forward`.
            caption_labels: `(batch, tokens)`, the ids of captions, -100 at padding and in examples without one.
        """
        if image_features is None:
            image_features = self.get_image_features(pixel_values, pixel_mask, return_dict=True)
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_features=image_features,
            text_features=text_features,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            mlm_labels=mlm_labels,
            contrast=contrast,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        losses = dict(output.loss_dict or {})
        device = output.logits.device
        if answer_labels is not None:
            answers = unwrapped(answer_labels)
            is_question = ~answers.isnan().any(1)
            # All processes take part in the mean, also those without a question.
            num_questions = mean_over_processes(to_device(is_question.sum().float(), device))
            asked = examples_of_head(is_question)
            if len(asked):
                logits = self.answer_head(selected_examples(output, asked))
                targets = to_device(answers[asked], device)
                losses["loss_answer"] = self.config.answer_loss_weight * answer_loss(logits, targets, num_questions)
        if caption_labels is not None:
            captions = unwrapped(caption_labels)
            is_caption = (captions != -100).any(1)
            num_tokens = mean_over_processes(to_device((captions[:, 1:] != -100).sum().float(), device))
            captioned = examples_of_head(is_caption)
            if len(captioned):
                captions = to_device(captions[captioned], device)
                visual_states = make_visual_states(self, selected_examples(image_features, captioned))
                # What is padding is masked, whatever its id.
                mask = None if attention_mask is None else attention_mask[to_device(captioned, device)]
                states, _ = read_captions(self, captions.clamp(min=0), None, mask, visual_states)
                loss = caption_loss(self.caption_head(states[-1], visual_states), next_tokens(captions), num_tokens)
                losses["loss_caption"] = self.config.caption_loss_weight * loss
        return with_losses(output, losses)


def examples_of_head(kept: torch.Tensor) -> torch.Tensor:
    """
    The indices of the examples that a head is given, of boolean `(batch,)`: known without waiting where labels are on
    the CPU.

    One of several processes without such an example gives its first, which no loss counts. All have to run the same
    layers: gradients are exchanged layer by layer as backward passes reach them, and those of L_inter between them.
    """
    indices = kept.nonzero()[:, 0]
    return indices if len(indices) or num_processes() == 1 else indices.new_zeros(1)


def selected_examples(
    output: GLIPv2ImageFeatures | GLIPv2ModelOutput, kept: torch.Tensor
) -> GLIPv2ImageFeatures | GLIPv2ModelOutput:
    """
    Some examples of a batch.

    Args:
        output: image features or the output of a model.
        kept: long `(kept,)`, their indices.

    Returns:
        The same class, with what it holds for each example: losses, shapes, hidden states and attentions are left out.
    """
    fields = {}
    for name, value in output.items():
        if name in ("loss", "level_shapes") or name.endswith(("hidden_states", "attentions")):
            continue
        if isinstance(value, tuple):
            fields[name] = tuple(level[to_device(kept, level.device)] for level in value)
        elif isinstance(value, torch.Tensor):
            fields[name] = value[to_device(kept, value.device)]
    return type(output)(**fields)


__all__ = ["GLIPv2ForJointTraining"]
