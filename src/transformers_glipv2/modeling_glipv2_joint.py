"""Pre-training with answers and captions beside it: every loss over one set of shared weights, on one batch."""

from typing import Any

import torch
from transformers.utils import can_return_tuple

from .configuration_glipv2 import GLIPv2Config
from .distributed import mean_over_processes
from .losses import answer_loss, caption_loss
from .modeling_glipv2 import GLIPv2ImageFeatures, GLIPv2ObjectDetectionOutput, word_embedding_name
from .modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from .modeling_glipv2_pretraining import GLIPv2ForPreTraining
from .modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering


class GLIPv2ForJointTraining(GLIPv2ForConditionalGeneration, GLIPv2ForVisualQuestionAnswering, GLIPv2ForPreTraining):
    """
    All losses of pre-training, of answers and of captions. Each of the three classes loads its part of what is saved.

    Args:
        config: sizes and options; `id2label` is the vocabulary of answers.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__(config)
        words = word_embedding_name(self)
        self._tied_weights_keys = {f"{head}.decoder.weight": words for head in ("mlm_head", "caption_head")}
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        image_features: GLIPv2ImageFeatures | None = None,
        answer_labels: torch.FloatTensor | None = None,
        caption_labels: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> GLIPv2ObjectDetectionOutput:
        """
        As `GLIPv2ForPreTraining.forward`; `loss_dict` adds loss_answer and loss_caption where a row has such.

        Args:
            answer_labels: as of `GLIPv2ForVisualQuestionAnswering.forward`.
            caption_labels: `(batch, tokens)`, the ids of captions, -100 at padding and in rows without one.
        """
        if image_features is None:
            image_features = self.get_image_features(pixel_values, pixel_mask)
        kwargs.pop("return_dict", None)
        output = GLIPv2ForPreTraining.forward(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_features=image_features,
            **kwargs,
            return_dict=True,
        )
        losses = dict(output.loss_dict or {})
        if answer_labels is not None:
            asked = ~answer_labels.isnan().any(1)
            # All processes take part in the mean, also those without a question.
            questions = mean_over_processes(asked.sum().float())
            if asked.any():
                answers = self.answer_head(rows_of(output, asked))
                losses["loss_answer"] = answer_loss(answers, answer_labels[asked], questions)
        if caption_labels is not None:
            told = (caption_labels != -100).any(1)
            words = mean_over_processes((caption_labels[:, 1:] != -100).sum().float())
            if told.any():
                labels = caption_labels[told]
                described = GLIPv2ForConditionalGeneration.forward(
                    self,
                    image_features=rows_of(image_features, told),
                    # What is padding is masked, whatever its id.
                    input_ids=labels.clamp(min=0),
                    attention_mask=attention_mask[told],
                    return_dict=True,
                )
                losses["loss_caption"] = caption_loss(described.logits, labels, words)
        if losses:
            output.loss, output.loss_dict = sum(losses.values()), losses
        return output


def rows_of(output: Any, kept: torch.Tensor) -> Any:
    """
    Some rows of an output.

    Args:
        output: `GLIPv2ImageFeatures` or `GLIPv2ObjectDetectionOutput`, without hidden states.
        kept: boolean `(batch,)`.

    Returns:
        The same class, with what it holds for each row: losses and shapes are left out.
    """
    fields = {}
    for name, value in output.items():
        if isinstance(value, tuple):
            fields[name] = tuple(level[kept] for level in value)
        elif isinstance(value, torch.Tensor) and name not in ("loss", "level_shapes"):
            fields[name] = value[kept]
    return type(output)(**fields)
