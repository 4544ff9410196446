"""
GLIPv2 in pre-training: masked tokens, and the contrast of regions and tokens over all images of a batch.

From the paper (section 3.2): L = L_loc + L_intra + L_inter + L_mlm.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_glipv2 import GLIPv2Config
from .layers.feature_maps import FeatureMaps, flatten_levels, map_shapes
from .layers.half_precision import avoid_float16
from .losses import (
    AnchorTargets,
    ContrastGradients,
    ContrastiveFeatures,
    OnHost,
    choose_regions,
    classes_of_tokens,
    inter_image_loss,
    masked_token_loss,
    masked_tokens,
    padded_over_processes,
    unwrapped,
)
from .modeling_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2ImageFeatures,
    GLIPv2Model,
    GLIPv2ModelOutput,
    GLIPv2ObjectDetectionOutput,
    GLIPv2PreTrainedModel,
    Labels,
    token_features,
    with_losses,
    word_embedding_name,
)


@dataclass
class GLIPv2MaskedLMFields(ModelOutput):
    """
    What the masked language modelling head adds.

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `labels`):
            Cross entropy of the masked tokens.
        logits (`torch.FloatTensor` of shape `(batch, tokens, vocabulary)`):
            Scores of every word of the vocabulary at every position, before the softmax.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


@dataclass
class GLIPv2MaskedLMOutput(GLIPv2ModelOutput, GLIPv2MaskedLMFields):
    """Output of `GLIPv2ForMaskedLM`: `GLIPv2MaskedLMFields`, then `GLIPv2ModelOutput`."""


class GLIPv2MaskedLMHead(nn.Module):
    """Scores of every word of the vocabulary from fused tokens (L_mlm, section 3.2)."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        text_config = config.text_config
        self.dense = nn.Linear(text_config.hidden_size, text_config.hidden_size)
        self.norm = nn.LayerNorm(text_config.hidden_size, eps=text_config.layer_norm_eps)
        self.decoder = nn.Linear(text_config.hidden_size, text_config.vocab_size)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """`(..., text_dim)` to `(..., vocabulary)`."""
        return self.decoder(self.norm(F.gelu(self.dense(text))))

    def loss(self, text: torch.Tensor, labels: torch.LongTensor) -> torch.FloatTensor:
        """
        L_mlm, not weighted; only masked tokens pass the head.

        Args:
            text: fused tokens `(batch, tokens, text_dim)`.
            labels: `(batch, tokens)`, the ids of masked tokens and -100 elsewhere.
        """
        masked, ids = masked_tokens(text, unwrapped(labels))
        return masked_token_loss(self(masked), ids)


class GLIPv2ContrastiveHead(nn.Module):
    """Projections into the space in which regions meet the tokens of all images (L_inter, section 3.2)."""

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
            text: tokens before fusion `(..., text_dim)`.

        Returns:
            Both as unit vectors `(..., contrastive_dim)`, and the logarithm of the temperature `(1,)`; float32.
        """
        return (
            F.normalize(avoid_float16(self.image_projection, regions).float(), dim=-1),
            F.normalize(self.text_projection(text).float(), dim=-1),
            self.log_scale.float().clamp(min=self.MIN_LOG_TEMPERATURE),
        )


def text_without_image(
    model: GLIPv2Model, text_features: torch.Tensor, attention_mask: torch.Tensor | None
) -> GLIPv2ModelOutput:
    """
    The tower without an image: each fusion leaves the tokens as it normalises them.

    Args:
        model: whose tower.
        text_features: `(batch, tokens, text_dim)`.
        attention_mask: `(batch, tokens)`, 1 for tokens and 0 for padding.
    """
    mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
    text = text_features
    for layer in model.layers:
        if layer.fusion is not None:
            text = layer.text_layer(layer.fusion.text_norm(text), mask)
    return GLIPv2ModelOutput(fused_text=text, text_features=text_features, attention_mask=attention_mask)


class GLIPv2ForMaskedLM(GLIPv2PreTrainedModel):
    """
    Masked tokens predicted from the text and the image, or from the text alone (`pipeline("fill-mask")`).

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
        text_features: BaseModelOutputWithPooling | torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> GLIPv2MaskedLMOutput:
        """
        As `GLIPv2Model.forward`; the output adds the fields of `GLIPv2MaskedLMFields`.

        Args:
            labels: `(batch, tokens)`, the ids of masked tokens and -100 elsewhere.

        Without `pixel_values` and `image_features` the tokens pass the tower alone, and the output holds nothing of
        an image.
        """
        if pixel_values is None and image_features is None:
            if text_features is None:
                text_features = self.model.get_text_features(
                    input_ids, attention_mask, token_type_ids, inputs_embeds, return_dict=True
                )
            model_output = text_without_image(self.model, token_features(text_features), attention_mask)
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
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                return_dict=True,
            )
        logits = self.mlm_head(model_output.fused_text)
        loss = None
        if labels is not None:
            loss = masked_token_loss(*masked_tokens(logits, unwrapped(labels)))
        return GLIPv2MaskedLMOutput(loss=loss, logits=logits, **model_output)


class GLIPv2ForPreTraining(GLIPv2ForObjectDetection):
    """
    The three pre-training tasks on one batch: grounding, inter-image region-word contrast and masked tokens.

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
        contrast: ContrastGradients | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> GLIPv2ObjectDetectionOutput:
        """
        As `GLIPv2ForObjectDetection.forward`; `loss_dict` adds loss_inter and loss_mlm.

        Args:
            labels: optionally also "class_ids" `(n,)`, the class of each box, and "prompt_class_ids" `(k,)` with
                "prompt_map" `(k, tokens)`, every class that the text lists: what L_inter propagates to other images.
            mlm_labels: `(batch, tokens)`, the ids of masked tokens and -100 elsewhere.
            contrast: where the batch is one of several micro-batches of a step: what L_inter of the whole step gives
                this one (`training/accumulation.py`).
        """
        model_output = self.model(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_mask=pixel_mask,
            image_features=image_features,
            text_features=text_features,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        output, targets = self.detect(model_output, labels)
        losses = dict(output.loss_dict or {})
        if targets is not None:
            features = self.contrastive_features(
                output.feature_maps, output.text_features, output.attention_mask, targets, labels
            )
            if contrast is None:
                padded = padded_over_processes([features], self.config.max_text_length)
                loss = inter_image_loss(**vars(padded), normalizer=targets.num_positives)
                losses["loss_inter"] = self.config.inter_loss_weight * loss
            else:
                losses["loss_inter"] = contrast.loss(features)
        if mlm_labels is not None:
            losses["loss_mlm"] = self.config.mlm_loss_weight * self.mlm_head.loss(output.fused_text, mlm_labels)
        return with_losses(output, losses)

    def contrastive_features(
        self,
        feature_maps: FeatureMaps,
        text_features: torch.Tensor,
        attention_mask: torch.Tensor | None,
        targets: AnchorTargets,
        labels: Labels,
    ) -> ContrastiveFeatures:
        """The regions and tokens before fusion that L_inter compares, of this batch on this process."""
        batch, num_tokens = text_features.shape[:2]
        chosen = choose_regions(targets, batch, self.config.max_contrastive_regions)
        anchor, own_tokens, region_classes, region_mask = chosen
        image = torch.arange(batch, device=anchor.device)[:, None]
        regions = flatten_levels(feature_maps)[image, anchor]
        regions, tokens, log_temperature = self.contrastive_head(regions, text_features)
        token_mask = torch.ones_like(tokens[..., 0], dtype=torch.bool)
        if attention_mask is not None:
            token_mask = attention_mask.bool()
        token_classes = classes_of_tokens(unwrapped(labels), num_tokens, anchor.device)
        return ContrastiveFeatures(
            regions, tokens, own_tokens, region_mask, token_mask, region_classes, token_classes, log_temperature
        )

    def encode_contrast(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        labels: Labels,
        attention_mask: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
    ) -> tuple[ContrastiveFeatures, AnchorTargets]:
        """
        What L_inter compares, by the encoders alone, and which anchors learn which boxes; arguments as of `forward`.
        For steps of several micro-batches, whose regions and tokens meet those of all.
        """
        image_features = self.get_image_features(pixel_values, pixel_mask, return_dict=True)
        text_features = token_features(self.get_text_features(input_ids, attention_mask, return_dict=True))
        maps = image_features.feature_maps
        targets = self.match_anchors(labels, map_shapes(maps), image_features.image_sizes, text_features.shape[1])
        return self.contrastive_features(maps, text_features, attention_mask, targets, labels), targets


__all__ = ["GLIPv2ForMaskedLM", "GLIPv2ForPreTraining", "GLIPv2MaskedLMOutput"]
