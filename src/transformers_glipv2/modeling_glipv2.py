"""
GLIPv2 models.

From the paper ("GLIPv2: Unifying Localization and Vision-Language Understanding", Zhang et al., NeurIPS 2022) to the
code:

| paper                                                | here                                                     |
|------------------------------------------------------|----------------------------------------------------------|
| Enc_V, the image features O0 (section 3.1)           | `GLIPv2Model.get_image_features`, `GLIPv2FeaturePyramid` |
| Enc_L, the token features P0 (section 3.1)           | `GLIPv2Model.get_text_features`                          |
| Enc_VL, deep fusion (section 3.1; GLIP section 3.2)  | `GLIPv2TowerLayer` (`fusion.py`, `dyhead.py`)            |
| S = O P^T, boxes, centerness (equation 2)            | `GLIPv2DetectionHead`                                    |
| L_loc + L_intra + L_inter + L_mlm (equations 3 to 6) | `losses.py`, `modeling_glipv2_pretraining.py`            |
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import drop_block2d
from transformers import MODEL_MAPPING, AutoBackbone, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, cached_file, can_return_tuple

from .backbones.faster_layers import use_faster_layers
from .boxes import anchor_grid, clip_boxes, decode_boxes, normalize_boxes
from .configuration_glipv2 import GLIPv2Config
from .inference.model_checks import record_new_weights
from .layers.dyhead import GLIPv2DyConv, SamplingGrid, init_dyconv, neighbour_grid
from .layers.feature_maps import (
    FeatureMaps,
    crop_maps,
    flatten_levels,
    has_padding,
    join_attentions,
    join_maps,
    location_mask,
    map_shapes,
    own_map_shapes,
    split_levels,
)
from .layers.fusion import BOUND, GLIPv2BiAttention, GLIPv2FusedTextLayer, init_bi_attention
from .layers.half_precision import avoid_float16
from .layers.input_checks import additive_mask, check_pixels, check_text, image_sizes_of, read_sizes, ready_mask
from .layers.prompt_tuning import (
    PROMPT_FILE,
    has_prompt_tuning,
    load_prompt_tuning,
    save_prompt_tuning,
    untuned_names,
    without_wrapper,
)
from .losses import AnchorTargets, OnHost, detection_losses, match_anchors, unwrapped

Labels = Sequence[Mapping[str, Any] | None] | OnHost
# Of `from_pretrained`: where the files of a checkpoint are.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


# Outputs -------------------------------------------------------------------------------------------------------------


@dataclass
class GLIPv2ImageFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_image_features`, and input of the `image_features` argument.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, H * W, channels)`):
            The backbone's last map as a sequence, row-major.
        hidden_states (`tuple` of 3 `torch.FloatTensor` of shape `(batch, channels_l, H_l, W_l)`, with
        `output_hidden_states`):
            The backbone's maps at strides 8, 16 and 32, which the pyramid is made of.
        attentions (`tuple` of `torch.FloatTensor`, with `output_attentions`):
            Attention of the backbone's stages between these maps, where the backbone returns it. `None` with
            `config.mask_padded_pixels`, where images of different sizes have different windows.
        feature_maps (`tuple` of 5 `torch.FloatTensor` of shape `(batch, d_model, H_l, W_l)`):
            P3..P7 before fusion; of a model in float16, P6 and P7 are float32.
        image_sizes (`torch.LongTensor` of shape `(batch, 2)`):
            Height and width in pixels of each un-padded (resized) image.
        own_shapes (`list` of `list` of `tuple[int, int]`, with `config.mask_padded_pixels`):
            For each image height and width of the part of each map that it fills.
    """

    feature_maps: FeatureMaps | None = None
    image_sizes: torch.LongTensor | None = None
    own_shapes: list[list[tuple[int, int]]] | None = None


@dataclass
class GLIPv2ModelOutput(ModelOutput):
    """
    Output of `GLIPv2Model`.

    Args:
        fused_feature_maps (`tuple` of 5 `torch.FloatTensor` of shape `(batch, d_model, H_l, W_l)`):
            P3..P7 after fusion.
        fused_text (`torch.FloatTensor` of shape `(batch, tokens, text_dim)`):
            Token features after fusion.
        feature_maps (as `fused_feature_maps`), text_features (as `fused_text`):
            The same before fusion.
        image_sizes (`torch.LongTensor` of shape `(batch, 2)`):
            Height and width in pixels of each un-padded (resized) image.
        attention_mask (`torch.LongTensor` of shape `(batch, tokens)`):
            1 for tokens, 0 for padding.
        input_ids (`torch.LongTensor` of shape `(batch, tokens)`, where they were given):
            The text, by which post-processing refuses another one.
        location_mask (`torch.BoolTensor` of shape `(batch, locations)`, with `config.mask_padded_pixels`):
            `True` at locations of the image, `False` in its padding; P3 first, row-major.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(batch, tokens, text_dim)`, with
        `output_hidden_states`):
            Token features before the first and after each tower layer; `None` at layers that were not asked for.
        vision_hidden_states (`tuple` of tuples as `feature_maps`, with `output_hidden_states`):
            The maps before the first and after each tower layer.
        attentions (`tuple` of pairs of `torch.FloatTensor` of shape `(batch, heads, locations, tokens)` and
            `(batch, heads, tokens, locations)`, with `output_attentions`):
            What each location attends to in the text and each token in the image, one pair a fusion.
    """

    fused_feature_maps: FeatureMaps | None = None
    fused_text: torch.FloatTensor | None = None
    feature_maps: FeatureMaps | None = None
    text_features: torch.FloatTensor | None = None
    image_sizes: torch.LongTensor | None = None
    attention_mask: torch.LongTensor | None = None
    input_ids: torch.LongTensor | None = None
    location_mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor | None, ...] | None = None
    vision_hidden_states: tuple[FeatureMaps | None, ...] | None = None
    attentions: tuple[tuple[torch.FloatTensor, torch.FloatTensor], ...] | None = None


# A dataclass lists the fields of its last base first, so heads put their own fields before those
# of the model by naming `GLIPv2ModelOutput` as the first base.


@dataclass
class GLIPv2DetectionFields(ModelOutput):
    """
    What the detection head adds.

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `labels`):
            Sum of `loss_dict`.
        loss_dict (`dict[str, torch.FloatTensor]`, with `labels`):
            Each loss, weighted as the configuration says.
        logits (`torch.FloatTensor` of shape `(batch, anchors, tokens)`):
            S = O P^T before the sigmoid. Anchors run over all levels, P3 first, row-major.
        centerness (`torch.FloatTensor` of shape `(batch, anchors)`):
            Before the sigmoid.
        box_deltas (`torch.FloatTensor` of shape `(batch, anchors, 4)`):
            Boxes coded against the anchors.
        pred_boxes (`torch.FloatTensor` of shape `(batch, anchors, 4)`):
            Centre x, centre y, width, height in [0, 1] of each un-padded image.
        level_shapes (`torch.LongTensor` of shape `(5, 2)`):
            Height and width of each level's map; on the CPU, where no device has to be waited for.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    centerness: torch.FloatTensor | None = None
    box_deltas: torch.FloatTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    level_shapes: torch.LongTensor | None = None


@dataclass
class GLIPv2ObjectDetectionOutput(GLIPv2ModelOutput, GLIPv2DetectionFields):
    """Output of `GLIPv2ForObjectDetection`: `GLIPv2DetectionFields`, then `GLIPv2ModelOutput`."""


# Blocks --------------------------------------------------------------------------------------------------------------


class GLIPv2FeaturePyramid(nn.Module):
    """The backbone's three maps to P3..P7: lateral 1x1, nearest upsampling, 3x3 outputs, two strided convolutions."""

    def __init__(self, config: GLIPv2Config, in_channels: list[int]):
        super().__init__()
        self.drop_block_prob = config.drop_block_prob
        self.drop_block_size = config.drop_block_size
        self.lateral_convs = nn.ModuleList(nn.Conv2d(channels, config.d_model, 1) for channels in in_channels)
        self.output_convs = nn.ModuleList(nn.Conv2d(config.d_model, config.d_model, 3, padding=1) for _ in in_channels)
        self.p6 = nn.Conv2d(config.d_model, config.d_model, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(config.d_model, config.d_model, 3, stride=2, padding=1)

    def forward(self, backbone_maps: FeatureMaps) -> FeatureMaps:
        """
        `(batch, channels_l, H_l, W_l)` at strides 8, 16, 32 to `(batch, d_model, H_l, W_l)` at strides 8..128. Where
        the model computes in float16, P6 and P7 are float32.
        """
        laterals = [conv(feature_map) for conv, feature_map in zip(self.lateral_convs, backbone_maps, strict=True)]
        merged = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest"))
        # The top level is never dropped.
        merged[:-1] = [
            drop_block2d(level, self.drop_block_prob, self.drop_block_size, training=self.training)
            for level in merged[:-1]
        ]
        p3, p4, p5 = (conv(level) for conv, level in zip(self.output_convs, merged, strict=True))
        p6 = avoid_float16(self.p6, p5)
        return p3, p4, p5, p6, avoid_float16(self.p7, F.relu(p6))


class GLIPv2TowerLayer(GradientCheckpointingLayer):
    """One block of Enc_VL: fusion of maps and tokens, a text layer, a dynamic convolution over the levels."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.fusion = GLIPv2BiAttention(config) if config.use_fusion else None
        self.text_layer = GLIPv2FusedTextLayer(config) if config.use_fusion else None
        self.dyconv = GLIPv2DyConv(config)

    def forward(
        self,
        text: torch.Tensor,
        *feature_maps: torch.Tensor,
        text_mask: torch.Tensor | None = None,
        own_shapes: list[list[tuple[int, int]]] | None = None,
        output_attentions: bool = False,
        grid: SamplingGrid | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """
        Tensors that need gradients come and go as plain positional tensors, since reentrant gradient checkpointing
        overlooks those inside of tuples.

        Args:
            text: `(batch, tokens, text_dim)`.
            feature_maps: 5 x `(batch, d_model, H_l, W_l)`.
            text_mask: boolean `(batch, tokens)`, `False` at padding, or from `additive_mask`; `None` when there is
                none.
            own_shapes: from `own_map_shapes`, to take each image alone, without its padding; `None` lets padding
                take part.
            output_attentions: also return the fusion's two attention maps.
            grid: of the maps, from `neighbour_grid`, where it is made already and padding takes part.

        Returns:
            The new text, the new maps and, with `output_attentions` and a fusion, the attention maps of locations
            and of tokens.
        """
        if own_shapes is None:
            return self._mix(text, feature_maps, text_mask, output_attentions, grid)
        # Means over whole maps, resized maps and attention over all locations know nothing of masks.
        images = [
            self._mix(
                text[image : image + 1],
                crop_maps(feature_maps, image, shapes),
                None if text_mask is None else text_mask[image : image + 1],
                output_attentions,
            )
            for image, shapes in enumerate(own_shapes)
        ]
        num_levels, level_shapes = len(feature_maps), map_shapes(feature_maps)
        texts = torch.cat([image[0] for image in images])
        maps = join_maps([image[1 : 1 + num_levels] for image in images], level_shapes)
        attentions = [image[1 + num_levels :] for image in images]
        if not attentions[0]:
            return texts, *maps
        return texts, *maps, *join_attentions(attentions, own_shapes, level_shapes)

    def _mix(
        self,
        text: torch.Tensor,
        feature_maps: FeatureMaps,
        text_mask: torch.Tensor | None,
        output_attentions: bool,
        grid: SamplingGrid | None = None,
    ) -> tuple[torch.Tensor, ...]:
        attentions = None
        if self.fusion is not None:
            vision, text, attentions = self.fusion(
                flatten_levels(feature_maps), text, text_mask, output_attentions=output_attentions
            )
            feature_maps = split_levels(vision, map_shapes(feature_maps))
            key_mask = None if text_mask is None else text_mask[:, None, None, :]
            text = self.text_layer(text, key_mask)  # type: ignore[misc]  # where there is fusion there is a text layer
        elif self.dyconv.offset.weight.dtype == torch.float16:
            feature_maps = tuple(level.clamp(-BOUND, BOUND).half() for level in feature_maps)
        return text, *self.dyconv(feature_maps, grid), *(attentions or ())


# Heads ---------------------------------------------------------------------------------------------------------------


class GLIPv2DetectionHead(nn.Module):
    """Boxes, centerness and S = O P^T for every location of every level (equation 2 of the paper)."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.use_fusion = config.use_fusion
        self.prior_prob = config.prior_prob
        text_dim = config.text_config.hidden_size
        self.box_predictor = nn.Conv2d(config.d_model, 4, 1)
        self.centerness_predictor = nn.Conv2d(config.d_model, 1, 1)
        self.level_scales = nn.Parameter(torch.ones(len(config.anchor_strides)))
        self.token_projection = nn.Linear(text_dim, config.d_model)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.text_bias = nn.Parameter(torch.zeros(text_dim))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - config.prior_prob) / config.prior_prob)))

    def forward(
        self, feature_maps: FeatureMaps, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            feature_maps: fused maps, 5 x `(batch, d_model, H_l, W_l)`.
            text: fused tokens `(batch, tokens, text_dim)`.

        Returns:
            logits `(batch, anchors, tokens)`, centerness `(batch, anchors)`, box_deltas `(batch, anchors, 4)`;
            float32.
        """
        regions = flatten_levels(feature_maps)
        # The convolutions are 1x1, so all levels may be one map.
        one_map = split_levels(regions, [(1, regions.shape[1])])[0]
        deltas, centerness = (
            predictor(one_map).flatten(2).transpose(1, 2)
            for predictor in (self.box_predictor, self.centerness_predictor)
        )
        sizes = [feature_map.shape[-2] * feature_map.shape[-1] for feature_map in feature_maps]
        scales = torch.cat([scale.expand(size) for scale, size in zip(self.level_scales, sizes, strict=True)])
        return self.token_logits(regions, text), centerness.squeeze(-1).float(), (deltas * scales[:, None]).float()

    def token_logits(self, regions: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Dot products of regions `(batch, regions, d_model)` and tokens `(batch, tokens, text_dim)`, in float32."""
        text = F.normalize(text, dim=-1)
        tokens = self.token_projection(text / 2)
        # Half precision would lose the difference of nearby scores.
        bias = text.float() @ self.text_bias.float() + self.bias.float()
        similarity = (regions @ (tokens / self.log_scale.exp()).transpose(1, 2)).float()
        return (similarity + bias[:, None, :]).clamp(-BOUND, BOUND)


# Inputs --------------------------------------------------------------------------------------------------------------


def match_batches(
    image_features: GLIPv2ImageFeatures, text_features: torch.Tensor, attention_mask: torch.Tensor | None
) -> tuple[FeatureMaps, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    Expands the side with a batch of 1 to the batch of the other.

    Returns:
        feature_maps, image_sizes, text_features and attention_mask with equal batches.

    Raises:
        ValueError: when neither batch is 1 and they differ.
    """
    feature_maps, image_sizes = image_features.feature_maps, image_features.image_sizes
    images, texts = image_sizes.shape[0], text_features.shape[0]
    if images != texts and 1 not in (images, texts):
        raise ValueError(
            f"There are {images} images and {texts} texts; pass one text an image, or one of either for all."
        )
    if attention_mask is not None and attention_mask.shape != text_features.shape[:2]:
        raise ValueError(
            f"`attention_mask` must have shape {tuple(text_features.shape[:2])} (batch, tokens), "
            f"not {tuple(attention_mask.shape)}."
        )
    if images < texts:
        feature_maps = tuple(feature_map.expand(texts, -1, -1, -1) for feature_map in feature_maps)
        image_sizes = image_sizes.expand(texts, 2)
    elif texts < images:
        text_features = text_features.expand(images, -1, -1)
        attention_mask = None if attention_mask is None else attention_mask.expand(images, -1)
    return feature_maps, image_sizes, text_features, attention_mask


def selected_states(output_hidden_states: bool | int | Sequence[int] | None, num_states: int) -> set[int]:
    """Indices of the hidden states to return: all, none, or those chosen, which may count from the end."""
    if output_hidden_states is None or isinstance(output_hidden_states, bool):
        return set(range(num_states)) if output_hidden_states else set()
    chosen = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
    return {index % num_states for index in chosen if -num_states <= index < num_states}


# Models --------------------------------------------------------------------------------------------------------------


class GLIPv2PreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of every GLIPv2 model."""

    config: GLIPv2Config
    config_class = GLIPv2Config
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["GLIPv2TowerLayer", "GLIPv2FeaturePyramid", "SwinStage", "BertLayer"]
    # One checkpoint may hold every head; each class takes its part.
    _keys_to_ignore_on_load_unexpected = [
        r"^(detection_head|mlm_head|contrastive_head|mask_head|answer_head|caption_head)\."
    ]

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """
        As in transformers. A tuned prompt beside the weights is loaded with them, and the model remembers what the
        checkpoint lacked, which inference refuses to use.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        hub_options = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        loading: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loading
        record_new_weights(model, info["missing_keys"])
        if model.config.tuned_prompt is not None and source is not None:
            load_prompt_tuning(model, cached_file(source, PROMPT_FILE, **hub_options))
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the offsets of a tuned prompt go to a file of their own beside the weights."""
        if not has_prompt_tuning(self):
            return super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("state_dict") is not None:
            kwargs["state_dict"] = untuned_names(kwargs["state_dict"])
        with without_wrapper(self):
            saved = super().save_pretrained(save_directory, *args, **kwargs)
        save_prompt_tuning(self, save_directory)
        return saved

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False):
        # Outside of transformers, modules without parameters of their own would count as loaded, and the rules below
        # for their children be skipped. Those rules leave loaded weights alone.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2BiAttention):
            init_bi_attention(module, self.config)
        elif isinstance(module, GLIPv2DyConv):
            init_dyconv(module, self.config)
        elif isinstance(module, GLIPv2FeaturePyramid):
            for conv in module.modules():
                if isinstance(conv, nn.Conv2d):
                    init.kaiming_uniform_(conv.weight, a=1)
                    init.zeros_(conv.bias)
        elif isinstance(module, GLIPv2DetectionHead):
            for conv in (module.box_predictor, module.centerness_predictor):
                init.normal_(conv.weight, std=0.01)
                init.zeros_(conv.bias)
            init.ones_(module.level_scales)
            init.zeros_(module.log_scale)
            init.zeros_(module.text_bias)
            init.constant_(module.bias, -math.log((1 - module.prior_prob) / module.prior_prob))

    def enable_input_require_grads(self) -> None:
        """
        Lets gradients start at the embeddings of tokens and image patches, as adapters under gradient checkpointing
        need it. Unlike the default, also of backbones whose embeddings give a tuple.
        """

        def require_grads(module: nn.Module, args: Any, output: Any) -> None:
            (output[0] if isinstance(output, tuple) else output).requires_grad_(True)

        embeddings = {}
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                try:
                    layer = module.get_input_embeddings()
                except NotImplementedError:
                    continue
                if isinstance(layer, nn.Module):
                    embeddings[id(layer)] = layer
        self._require_grads_hooks = [layer.register_forward_hook(require_grads) for layer in embeddings.values()]
        self._require_grads_hook = self._require_grads_hooks[0]


# What the fused text layers read of the text encoder's configuration.
TEXT_FIELDS = (
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


def build_text_encoder(text_config: PreTrainedConfig) -> PreTrainedModel:
    """
    Any BERT-like encoder of transformers, without its pooler.

    Raises:
        ValueError: when the configuration lacks what BERT's has.
    """
    missing = [name for name in TEXT_FIELDS if not hasattr(text_config, name)]
    if missing:
        raise ValueError(
            f"`text_config` of type {text_config.model_type!r} has no {', '.join(missing)}; choose a BERT-like "
            "encoder, such as bert, roberta, electra or mpnet."
        )
    model_class = MODEL_MAPPING[type(text_config)]
    has_pooler = "add_pooling_layer" in inspect.signature(model_class).parameters
    return AutoModel.from_config(text_config, **({"add_pooling_layer": False} if has_pooler else {}))


class GLIPv2Model(GLIPv2PreTrainedModel):
    """
    The dual encoder and the fusion encoder: (O0, P0) = (Enc_V(image), Enc_L(text)); (O, P) = Enc_VL(O0, P0).

    Args:
        config: sizes and options.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        use_faster_layers(self.backbone)
        self.neck = GLIPv2FeaturePyramid(config, self.backbone.channels)
        self.text_encoder = build_text_encoder(config.text_config)
        self.layers = nn.ModuleList(GLIPv2TowerLayer(config) for _ in range(config.num_fusion_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_encoder.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        pixel_mask: torch.LongTensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> GLIPv2ImageFeatures:
        """
        Enc_V: the image's pyramid, which any number of prompts can share.

        Args:
            pixel_values: `(batch, 3, height, width)`, as the processor gives them.
            pixel_mask: `(batch, height, width)`, 1 for the image and 0 for padding to its right and below; `None`
                when nothing is padded. It may stay on the CPU; with `config.mask_padded_pixels` a GPU need not be
                waited for then.
            output_hidden_states: also return the backbone's maps.
            output_attentions: also return the backbone's attention, where it has any.

        Returns:
            What the `image_features` argument of `forward` takes.

        Raises:
            TypeError: when `pixel_values` are not floating point.
            ValueError: when a shape does not fit, or (on the CPU) when a value is not finite or a mask is no
                rectangle.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        check_pixels(pixel_values, pixel_mask, self.config)
        image_sizes = image_sizes_of(pixel_values if pixel_mask is None else pixel_mask)
        # Convolutions are faster channels-last, a training step of the nano size by a fifth.
        pixel_values = pixel_values.to(self.dtype, memory_format=torch.channels_last)
        attentions, own_shapes = None, None
        if self.config.mask_padded_pixels:
            # One by one at their own sizes: then nothing can depend on the padding.
            images, sizes = [], read_sizes(image_sizes)
            for pixels, (height, width) in zip(pixel_values, sizes, strict=True):
                backbone_maps = self.backbone(pixels[None, :, :height, :width]).feature_maps
                images.append((*backbone_maps, *self.neck(backbone_maps)))
            largest = [
                tuple(map(max, zip(*shapes, strict=True))) for shapes in zip(*map(map_shapes, images), strict=True)
            ]
            all_maps = join_maps(images, largest)
            backbone_maps, feature_maps = all_maps[: len(backbone_maps)], all_maps[len(backbone_maps) :]
            own_shapes = own_map_shapes(sizes, map_shapes(feature_maps), self.config.anchor_strides)
        else:
            output = self.backbone(pixel_values, **({"output_attentions": True} if output_attentions else {}))
            backbone_maps = tuple(output.feature_maps)
            feature_maps = self.neck(backbone_maps)
            if output_attentions and output.attentions is not None:
                # Of a stage each; the pyramid's maps are those of the last stages.
                attentions = tuple(output.attentions[1 - len(backbone_maps) :])
        kept = selected_states(output_hidden_states, len(backbone_maps))
        hidden_states = tuple(level if index in kept else None for index, level in enumerate(backbone_maps))
        return GLIPv2ImageFeatures(
            last_hidden_state=backbone_maps[-1].flatten(2).transpose(1, 2),
            hidden_states=hidden_states if kept else None,
            attentions=attentions,
            feature_maps=feature_maps,
            image_sizes=image_sizes.to(pixel_values.device, non_blocking=True),
            own_shapes=own_shapes,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Enc_L: the token features of a text, which any number of images can share.

        Args:
            input_ids: `(batch, tokens)`.
            attention_mask: `(batch, tokens)`, 1 for tokens and 0 for padding; `None` when nothing is padded.
            token_type_ids: `(batch, tokens)`, zeros unless the text encoder wants otherwise.
            inputs_embeds: `(batch, tokens, text_dim)` in place of `input_ids`.
            output_hidden_states, output_attentions: also return those of the text encoder.

        Returns:
            What the `text_features` argument of `forward` takes: `last_hidden_state`, `(batch, tokens, text_dim)`.

        Raises:
            ValueError: for a text longer than `config.max_text_length` or than the text encoder's positions; on the
                CPU also for ids outside of the vocabulary and for a mask without tokens.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        check_text(input_ids, inputs_embeds, self.config, attention_mask)
        inputs = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": ready_mask(attention_mask, self.text_encoder),
            "token_type_ids": token_type_ids,
        }
        if output_attentions:
            inputs["output_attentions"] = True
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if self.config.use_fusion:
            if output_hidden_states not in (None, False):
                inputs["output_hidden_states"] = output_hidden_states
            encoded = self.text_encoder(**inputs)
            features, hidden_states = encoded.last_hidden_state, encoded.hidden_states
        else:
            encoded = self.text_encoder(**inputs, output_hidden_states=True)
            # The original divides the mean by the number of layers once more, and zeroes the padding.
            layers = self.config.num_text_layers
            features = torch.stack(encoded.hidden_states[-layers:]).mean(0) / layers
            if attention_mask is not None:
                features = features * attention_mask.unsqueeze(-1).to(features.dtype)
            kept = selected_states(output_hidden_states, len(encoded.hidden_states))
            hidden_states = tuple(
                states if index in kept else None for index, states in enumerate(encoded.hidden_states)
            )
            hidden_states = hidden_states if kept else None
        return BaseModelOutputWithPooling(
            last_hidden_state=features, hidden_states=hidden_states, attentions=encoded.attentions
        )

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
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> GLIPv2ModelOutput:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`.
            input_ids: `(batch, tokens)`.
            attention_mask: `(batch, tokens)`, 1 for tokens and 0 for padding.
            pixel_mask: `(batch, height, width)`, 1 for the image and 0 for padding.
            image_features: from `get_image_features`, in place of `pixel_values` and `pixel_mask`.
            text_features: from `get_text_features`, or its `last_hidden_state` `(batch, tokens, text_dim)`, in place
                of `input_ids`; the `attention_mask` still says what is padding.
            token_type_ids: `(batch, tokens)`.
            inputs_embeds: `(batch, tokens, text_dim)` in place of `input_ids`.
            output_hidden_states: also return the maps and token features before and after each layer; an index or
                indices return `None` in place of the others.
            output_attentions: also return what tokens and locations attend to.

        One image meets many prompts and one prompt many images: either side may have a batch of 1.

        Raises:
            TypeError: when `pixel_values` are not floating point.
            ValueError: when a side is missing, the two batches do not fit, or an input is refused by
                `get_image_features` or `get_text_features`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if image_features is None:
            if pixel_values is None:
                raise ValueError("Pass `pixel_values`, or `image_features` from `get_image_features`.")
            image_features = self.get_image_features(pixel_values, pixel_mask, False, False, return_dict=True)
        if text_features is None:
            text_features = self.get_text_features(
                input_ids, attention_mask, token_type_ids, inputs_embeds, False, False, return_dict=True
            )
        own_shapes = image_features.own_shapes
        feature_maps, image_sizes, text_features, attention_mask = match_batches(
            image_features, token_features(text_features), attention_mask
        )
        if own_shapes is not None:
            own_shapes = own_shapes * (len(image_sizes) // len(own_shapes))

        maps, text = feature_maps, text_features
        text_mask = None if attention_mask is None else additive_mask(attention_mask, text.dtype)
        locations = None
        if self.config.mask_padded_pixels:
            locations = location_mask(image_sizes, map_shapes(maps), self.config.anchor_strides)
        if not has_padding(own_shapes, maps):
            own_shapes = None
        grid = neighbour_grid(maps, self.config.dyconv_offset_mode) if own_shapes is None else None
        kept = selected_states(output_hidden_states, len(self.layers) + 1)
        # Only what is asked for: kept maps would be most of the tower's memory.
        text_states = [text if 0 in kept else None]
        vision_states = [maps if 0 in kept else None]
        attentions = []
        for index, layer in enumerate(self.layers, start=1):
            text, *maps = layer(
                text,
                *maps,
                text_mask=text_mask,
                own_shapes=own_shapes,
                output_attentions=output_attentions,
                grid=grid,
            )
            maps, layer_attentions = tuple(maps[: len(feature_maps)]), tuple(maps[len(feature_maps) :])
            text_states.append(text if index in kept else None)
            vision_states.append(maps if index in kept else None)
            if layer_attentions:
                attentions.append(layer_attentions)

        return GLIPv2ModelOutput(
            fused_feature_maps=maps,
            fused_text=text,
            feature_maps=feature_maps,
            text_features=text_features,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            input_ids=None if input_ids is None else input_ids.expand(len(image_sizes), -1),
            location_mask=locations,
            hidden_states=tuple(text_states) if kept else None,
            vision_hidden_states=tuple(vision_states) if kept else None,
            attentions=tuple(attentions) or None,
        )


def token_features(text_features: BaseModelOutputWithPooling | torch.Tensor) -> torch.Tensor:
    """The tensor `(batch, tokens, text_dim)` of what `get_text_features` gave, or of that tensor."""
    return text_features if isinstance(text_features, torch.Tensor) else text_features[0]


def word_embedding_name(model: GLIPv2PreTrainedModel) -> str:
    """Where the word embeddings are among the parameters of `model`, for tying the decoder of a head to them."""
    embeddings = model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is embeddings)


class GLIPv2ForObjectDetection(GLIPv2PreTrainedModel):
    """
    Detection of what a text names: boxes, centerness, and the similarity of every location with every token.

    Args:
        config: sizes and options.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__(config)
        self.model = GLIPv2Model(config)
        self.detection_head = GLIPv2DetectionHead(config)
        self.post_init()

    def get_image_features(self, *args, **kwargs) -> GLIPv2ImageFeatures:
        """As `GLIPv2Model.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs) -> BaseModelOutputWithPooling:
        """As `GLIPv2Model.get_text_features`."""
        return self.model.get_text_features(*args, **kwargs)

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
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> GLIPv2ObjectDetectionOutput:
        """
        As `GLIPv2Model.forward`; the output adds the fields of `GLIPv2DetectionFields`.

        Args:
            labels: for training, an image's {"boxes" `(n, 4)` centre x, centre y, width, height in [0, 1] of the
                un-padded image, "positive_map" `(n, tokens)`, above 0 at the tokens of each box}, or `None` where
                its boxes are not known. Images without boxes are all background.

        Raises:
            ValueError: when a side is missing, or batches or labels do not fit.
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
        return self.detect(model_output, labels)[0]

    def detect(
        self, model_output: GLIPv2ModelOutput, labels: Labels | None = None
    ) -> tuple[GLIPv2ObjectDetectionOutput, AnchorTargets | None]:
        """
        The detection head on the output of `GLIPv2Model`, and with labels L_loc (loss_box, loss_centerness) and
        L_intra (loss_intra), weighted.

        Args:
            labels: as in `forward`.

        Returns:
            The output, and with labels which anchors learn which boxes.
        """
        maps, image_sizes = model_output.fused_feature_maps, model_output.image_sizes
        logits, centerness, box_deltas = self.detection_head(maps, model_output.fused_text)
        if model_output.location_mask is not None:
            # Nothing is found in the padding.
            logits = logits.masked_fill(~model_output.location_mask[..., None], -BOUND)
        level_shapes = map_shapes(maps)
        anchors = self.anchors(level_shapes, box_deltas.device)
        height, width = image_sizes[:, None, 0], image_sizes[:, None, 1]
        boxes_xyxy = clip_boxes(decode_boxes(box_deltas, anchors), height, width)
        targets, losses = None, None
        if labels is not None:
            config = self.config
            targets = self.match_anchors(labels, level_shapes, image_sizes, logits.shape[2], anchors)
            losses = detection_losses(
                logits,
                centerness,
                box_deltas,
                targets,
                model_output.attention_mask,
                config.focal_alpha,
                config.focal_gamma,
            )
            losses = {
                "loss_box": config.box_loss_weight * losses["loss_box"],
                "loss_centerness": config.centerness_loss_weight * losses["loss_centerness"],
                "loss_intra": config.intra_loss_weight * losses["loss_intra"],
            }
        output = GLIPv2ObjectDetectionOutput(
            loss=None if losses is None else sum(losses.values()),
            loss_dict=losses,
            logits=logits,
            centerness=centerness,
            box_deltas=box_deltas,
            pred_boxes=normalize_boxes(boxes_xyxy, image_sizes),
            level_shapes=torch.tensor(level_shapes, device="cpu"),
            **model_output,
        )
        return output, targets

    def match_anchors(
        self,
        labels: Labels,
        level_shapes: list[tuple[int, int]],
        image_sizes: torch.Tensor,
        num_tokens: int,
        anchors: torch.Tensor | None = None,
    ) -> AnchorTargets:
        """
        Which anchors learn which boxes; needs no weights.

        Args:
            labels: as in `forward`.
            level_shapes: height and width of each level's map.
            image_sizes: `(batch, 2)`, height and width in pixels of each un-padded image.
            num_tokens: of the texts, padding included.
            anchors: of these maps, where they are already made.
        """
        if anchors is None:
            anchors = self.anchors(level_shapes, image_sizes.device)
        num_per_level = [height * width for height, width in level_shapes]
        return match_anchors(unwrapped(labels), anchors, num_per_level, image_sizes, num_tokens, self.config.atss_topk)

    def anchors(self, level_shapes: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
        """`(anchors, 4)`, x1, y1, x2, y2 in pixels of the resized image, for maps of these heights and widths."""
        return anchor_grid(level_shapes, self.config.anchor_strides, self.config.anchor_sizes, device=device)


def with_losses(
    output: GLIPv2ObjectDetectionOutput,
    losses: dict[str, torch.FloatTensor],
    output_class: type[GLIPv2ObjectDetectionOutput] | None = None,
    **more: Any,
) -> GLIPv2ObjectDetectionOutput:
    """
    An output with other losses.

    Args:
        output: of a detector.
        losses: by name; where there are none, the new output has no loss either.
        output_class: of the new output; that of `output` where none is given.
        more: fields to add.
    """
    fields = {name: value for name, value in output.items() if name not in ("loss", "loss_dict")}
    if losses:
        fields |= {"loss": sum(losses.values()), "loss_dict": losses}
    return (output_class or type(output))(**(fields | more))


class GLIPv2FreezableDetector(nn.Module):
    """
    Mixin of the models that add a head to the detector: the head can be trained alone, so that one checkpoint holds
    heads that were trained one after the other, over the same weights.

    Attributes:
        detector_is_frozen (`bool`): set by `freeze_detector` alone; what `requires_grad` says of parameters changes
            no loss.
    """

    detector_is_frozen = False

    def freeze_detector(self) -> None:
        """Trains the head alone: all else keeps its weights and stays in `eval()` through calls of `train()`."""
        self.detector_is_frozen = True
        for part in (self.model, self.detection_head):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; a frozen detector stays in evaluation mode, without dropout."""
        super().train(mode)
        if mode and self.detector_is_frozen:
            self.model.eval()
            self.detection_head.eval()
        return self

    def detector_gradients(self) -> torch.set_grad_enabled:
        """A context without gradients where the detector is frozen; it computes faster there."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.detector_is_frozen)


__all__ = [
    "GLIPv2ForObjectDetection",
    "GLIPv2ImageFeatures",
    "GLIPv2Model",
    "GLIPv2ModelOutput",
    "GLIPv2ObjectDetectionOutput",
    "GLIPv2PreTrainedModel",
]
