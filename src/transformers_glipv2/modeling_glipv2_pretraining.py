"""
GLIPv2 in pre-training: masked words, and the contrast of regions and words over all images of a batch.

From the paper (section 3.2): L = L_loc + L_intra + L_inter + L_mlm.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_glipv2 import GLIPv2Config
from .distributed import max_over_processes, mean_over_processes
from .layers.feature_maps import flatten_levels
from .losses import AnchorTargets, choose_regions, classes_of_words, inter_image_loss, masked_token_loss
from .modeling_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2ImageFeatures,
    GLIPv2Model,
    GLIPv2ModelOutput,
    GLIPv2ObjectDetectionOutput,
    GLIPv2PreTrainedModel,
    Labels,
    word_embedding_name,
)


@dataclass
class GLIPv2MaskedLMFields(ModelOutput):
    """
    What the masked-word head adds.

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `labels`):
            Cross entropy of the hidden words.
        logits (`torch.FloatTensor` of shape `(batch, tokens, vocabulary)`):
            Scores of every word of the vocabulary at every place, before the softmax.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


@dataclass
class GLIPv2MaskedLMOutput(GLIPv2ModelOutput, GLIPv2MaskedLMFields):
    """Output of `GLIPv2ForMaskedLM`: `GLIPv2MaskedLMFields`, then `GLIPv2ModelOutput`."""


class GLIPv2MaskedLMHead(nn.Module):
    """Scores of every word of the vocabulary from fused words (L_mlm, section 3.2)."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        text_config = config.text_config
        self.dense = nn.Linear(text_config.hidden_size, text_config.hidden_size)
        self.norm = nn.LayerNorm(text_config.hidden_size, eps=text_config.layer_norm_eps)
        self.decoder = nn.Linear(text_config.hidden_size, text_config.vocab_size)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """`(..., text_dim)` to `(..., vocabulary)`."""
        return self.decoder(self.norm(F.gelu(self.dense(text))))


class GLIPv2ContrastiveHead(nn.Module):
    """Projections into the space in which regions meet the words of all images (L_inter, section 3.2)."""

    # CLIP's bound: a temperature of 0.01 at least.
    MIN_LOG_TEMPERATURE = math.log(0.01)

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.initial_log_temperature = math.log(config.contrastive_temperature)
        self.image_projection = nn.Linear(config.d_model, config.contrastive_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.contrastive_dim)
        self.log_scale = nn.Parameter(torch.full((1,), self.initial_log_temperature))

    def forward(self, regions: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            regions: features before fusion `(..., d_model)`.
            text: words before fusion `(..., text_dim)`.

        Returns:
            Both as unit vectors `(..., contrastive_dim)`, and the logarithm of the temperature `(1,)`; float32.
        """
        return (
            F.normalize(self.image_projection(regions).float(), dim=-1),
            F.normalize(self.text_projection(text).float(), dim=-1),
            self.log_scale.float().clamp(min=self.MIN_LOG_TEMPERATURE),
        )


def text_without_image(
    model: GLIPv2Model, text_features: torch.Tensor, attention_mask: torch.Tensor | None
) -> GLIPv2ModelOutput:
    """
    The words' way through the tower when there is no image: each fusion leaves them as it normalises them.

    Args:
        model: whose tower.
        text_features: `(batch, tokens, text_dim)`.
        attention_mask: `(batch, tokens)`, 1 for words and 0 for padding.
    """
    mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
    text = text_features
    for layer in model.layers:
        if layer.fusion is not None:
            text = layer.text_layer(layer.fusion.text_norm(text), mask)
    return GLIPv2ModelOutput(fused_text=text, text_features=text_features, attention_mask=attention_mask)


class GLIPv2ForMaskedLM(GLIPv2PreTrainedModel):
    """
    Hidden words predicted from the text and the image, or from the text alone (`pipeline("fill-mask")`).

    Args:
        config: sizes and options.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__(config)
        self.model = GLIPv2Model(config)
        self.mlm_head = GLIPv2MaskedLMHead(config)
        self._tied_weights_keys = {"mlm_head.decoder.weight": word_embedding_name(self)}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Module):
        self.mlm_head.decoder = value

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        image_features: GLIPv2ImageFeatures | None = None,
        text_features: torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> GLIPv2MaskedLMOutput:
        """
        As `GLIPv2Model.forward`; the output adds the fields of `GLIPv2MaskedLMFields`.

        Args:
            labels: `(batch, tokens)`, the ids of hidden words and -100 elsewhere.

        Without `pixel_values` and `image_features` the words pass the tower by themselves, and the output holds
        nothing of an image.
        """
        if pixel_values is None and image_features is None:
            if text_features is None:
                text_features = self.model.get_text_features(input_ids, attention_mask, token_type_ids, inputs_embeds)
            model_output = text_without_image(self.model, text_features, attention_mask)
        else:
            model_output = self.model(
                pixel_values=pixel_values,
                input_ids=input_ids,
                attention_mask=attention_mask,
                pixel_mask=pixel_mask,
                image_features=image_features,
                text_features=text_features,
                token_type_ids=token_type_ids,
                inputs_embeds=inputs_embeds,
                return_dict=True,
                **kwargs,
            )
        logits = self.mlm_head(model_output.fused_text)
        loss = None
        if labels is not None:
            hidden = labels != -100
            loss = masked_token_loss(logits[hidden], labels[hidden])
        return GLIPv2MaskedLMOutput(loss=loss, logits=logits, **model_output)


class GLIPv2ForPreTraining(GLIPv2ForObjectDetection):
    """
    The three pre-training tasks on one batch: grounding, inter-image region-word contrast and masked words.

    Args:
        config: sizes and options.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__(config)
        self.mlm_head = GLIPv2MaskedLMHead(config)
        self.contrastive_head = GLIPv2ContrastiveHead(config)
        self._tied_weights_keys = {"mlm_head.decoder.weight": word_embedding_name(self)}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2ContrastiveHead):
            init.constant_(module.log_scale, module.initial_log_temperature)

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Module):
        self.mlm_head.decoder = value

    @can_return_tuple
    def forward(
        self,
        *args,
        labels: Labels | None = None,
        mlm_labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> GLIPv2ObjectDetectionOutput:
        """
        As `GLIPv2ForObjectDetection.forward`; `loss_dict` adds loss_inter and loss_mlm.

        Args:
            labels: optionally also "class_ids" `(n,)`, the class of each box, and "prompt_class_ids" `(k,)` with
                "prompt_map" `(k, tokens)`, every class that the text lists: what L_inter propagates to other images.
            mlm_labels: `(batch, tokens)`, the ids of hidden words and -100 elsewhere.
        """
        kwargs.pop("return_dict", None)
        output = super().forward(*args, **kwargs, return_dict=True)
        losses = {}
        if labels is not None:
            targets = self.match_anchors(output, labels)
            losses.update(self.detection_losses(output, targets))
            losses["loss_inter"] = self.config.inter_loss_weight * self.inter_image_loss(output, targets, labels)
        if mlm_labels is not None:
            hidden = mlm_labels != -100
            logits = self.mlm_head(output.fused_text[hidden])
            losses["loss_mlm"] = self.config.mlm_loss_weight * masked_token_loss(logits, mlm_labels[hidden])
        if losses:
            output.loss, output.loss_dict = sum(losses.values()), losses
        return output

    def inter_image_loss(
        self, output: GLIPv2ObjectDetectionOutput, targets: AnchorTargets, labels: Labels
    ) -> torch.FloatTensor:
        """L_inter, not weighted, between the regions and words before fusion of all images of all processes."""
        batch, num_tokens = output.text_features.shape[:2]
        anchor, own_words, region_classes, region_mask = choose_regions(
            targets, batch, self.config.max_contrastive_regions
        )
        image = torch.arange(batch, device=anchor.device)[:, None]
        regions = flatten_levels(output.feature_maps)[image, anchor]
        regions, words, log_temperature = self.contrastive_head(regions, output.text_features)
        word_mask = torch.ones_like(words[..., 0], dtype=torch.bool)
        if output.attention_mask is not None:
            word_mask = output.attention_mask.bool()
        word_classes = classes_of_words(labels, num_tokens, anchor.device)
        # Processes hold texts of different lengths.
        missing = max_over_processes(num_tokens, anchor.device) - num_tokens
        num_positives = mean_over_processes(targets.centerness.new_tensor(len(targets.anchor))).clamp(min=1)
        return inter_image_loss(
            regions,
            F.pad(words, (0, 0, 0, missing)),
            F.pad(own_words, (0, missing)),
            region_mask,
            F.pad(word_mask, (0, missing)),
            region_classes,
            F.pad(word_classes, (0, missing)),
            log_temperature,
            num_positives,
        )


__all__ = ["GLIPv2ForMaskedLM", "GLIPv2ForPreTraining", "GLIPv2MaskedLMOutput"]
