"""GLIPv2 configuration and the named sizes."""

import difflib
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

# These register themselves, so that a saved configuration finds its parts.
from .backbones.clip_text import GLIPv2CLIPTextConfig  # noqa: F401
from .backbones.coswin import GLIPv2CoSwinConfig  # noqa: F401

logger = logging.get_logger(__name__)

_SWIN_TINY = {"model_type": "swin", "out_indices": [2, 3, 4], "drop_path_rate": 0.2}
_SWIN_LARGE = {
    "model_type": "swin",
    "out_indices": [2, 3, 4],
    "embed_dim": 192,
    "depths": [2, 2, 18, 2],
    "num_heads": [6, 12, 24, 48],
    "window_size": 12,
    "drop_path_rate": 0.4,
}
_SWIN_BASE = {
    "model_type": "swin",
    "out_indices": [2, 3, 4],
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
    "window_size": 12,
    "drop_path_rate": 0.3,
}
# Florence, whose backbone this is, publishes no widths and depths; these give its 637 M parameters.
_COSWIN_HUGE = {
    "model_type": "glipv2_coswin",
    "out_indices": [2, 3, 4],
    "embed_dim": 256,
    "depths": [2, 2, 40, 2],
    "num_heads": [8, 16, 32, 64],
    "window_size": 12,
    "drop_path_rate": 0.4,
    "layer_scale_init_value": 1e-4,
}
# The text tower of CLIP ViT-B, as in the original's defaults.
_CLIP_TEXT_BASE = {"model_type": "glipv2_clip_text"}
# Florence's has 12 layers and 256 M parameters; this is the nearest width with heads of 64.
_CLIP_TEXT_HUGE = {
    "model_type": "glipv2_clip_text",
    "hidden_size": 1152,
    "num_attention_heads": 18,
    "intermediate_size": 4608,
}
_EFFICIENTNET_LITE0 = {
    "model_type": "timm_backbone",
    "backbone": "tf_efficientnet_lite0",
    "out_indices": [2, 3, 4],
    # Detection batches are too small for batch statistics.
    "freeze_batch_norm_2d": True,
}
_MINILM_6_LAYERS = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}

# What each named size changes of the defaults of GLIPv2Config (which are those of "tiny").
SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "backbone_config": _EFFICIENTNET_LITE0,
        "text_config": _MINILM_6_LAYERS,
        "d_model": 128,
        "num_fusion_layers": 2,
        "fusion_embed_dim": 256,
        "fusion_num_heads": 4,
        "dyconv_offset_mode": "resized",
        "mask_dim": 128,
        "answer_head_type": "evidence",
    },
    "tiny": {"backbone_config": _SWIN_TINY, "drop_block_prob": 0.3},
    "base": {
        "backbone_config": _SWIN_BASE,
        "text_config": _CLIP_TEXT_BASE,
        "num_fusion_layers": 8,
        "drop_block_prob": 0.3,
    },
    "large": {"backbone_config": _SWIN_LARGE, "num_fusion_layers": 8, "drop_block_prob": 0.3},
    "huge": {
        "backbone_config": _COSWIN_HUGE,
        "text_config": _CLIP_TEXT_HUGE,
        "num_fusion_layers": 8,
        "drop_block_prob": 0.3,
    },
}


@strict
class GLIPv2Config(PreTrainedConfig):
    r"""
    Configuration of every GLIPv2 model. The defaults are those of GLIPv2-tiny and of the released GLIP-T weights.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*, defaults to Swin-T):
            Any transformers or timm backbone that gives three maps at strides 8, 16 and 32.
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to BERT-base):
            Any BERT-like encoder.
        d_model (`int`, *optional*, defaults to 256):
            Channels of the pyramid and of the head.
        num_fusion_layers (`int`, *optional*, defaults to 6):
            Blocks of the tower; each is a fusion, a text layer and a dynamic convolution.
        fusion_embed_dim (`int`, *optional*, defaults to 2048), fusion_num_heads (`int`, *optional*, defaults to 8):
            Width and heads of the bidirectional attention.
        fusion_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the probabilities of the bidirectional attention.
        use_fusion (`bool`, *optional*, defaults to `True`):
            `False` leaves only the dynamic convolutions, as GLIP-T (A).
        anchor_sizes, anchor_strides (`tuple[int, ...]`):
            Side in pixels and stride in pixels of the one anchor of each level, P3 first.
        max_text_length (`int`, *optional*, defaults to 256):
            Tokens of one prompt, special tokens included.
        num_text_layers (`int`, *optional*, defaults to 1):
            Without fusion, token features are the mean of this many last layers, divided by the number once more (as
            the original does). With fusion the last layer is used, whatever this says.
        mask_padded_pixels (`bool`, *optional*, defaults to `False`):
            `True` takes the images of a padded batch one by one at their own sizes, so that an image gives the
            same boxes alone and in any batch. Released weights were trained without; with it batches of different
            sizes save no time.
        dyconv_offset_mode (`"released"` or `"resized"`, *optional*, defaults to `"released"`):
            How the offsets of the coarser branch are read: as in training of the released weights, or bilinearly
            resized.
        group_norm_groups (`int`, *optional*, defaults to 16), layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Normalisation in the tower.
        drop_block_prob (`float`, *optional*, defaults to 0.0), drop_block_size (`int`, *optional*, defaults to 3):
            DropBlock on the pyramid's finer levels in training.
        prior_prob (`float`, *optional*, defaults to 0.01):
            Initial score of every (anchor, token) pair.
        atss_topk (`int`, *optional*, defaults to 9):
            Candidates a level and box in the assignment of anchors.
        focal_alpha, focal_gamma (`float`):
            Sigmoid focal loss.
        box_loss_weight, centerness_loss_weight, intra_loss_weight, inter_loss_weight, mlm_loss_weight (`float`):
            Weights of the summed losses.
        answer_loss_weight, caption_loss_weight (`float`, *optional*, defaults to 1.0):
            Weights of the further losses of joint training.
        contrastive_dim (`int`, *optional*, defaults to 64), max_contrastive_regions (`int`, *optional*,
            defaults to 100), contrastive_temperature (`float`, *optional*, defaults to 0.07):
            Width of the inter-image contrastive space, regions of an image, and initial value of the learned
            temperature.
        mask_extractor (`"fcn"` or `"hourglass"`), mask_num_convs (`int`), mask_dim (`int`), mask_pool_size (`int`):
            The mask head: its feature extractor, the number of its convolutions (or hourglasses), channels, and
            side of the pooled features.
        mask_feature_source (`"before_fusion"` or `"after_fusion"`):
            The maps that the mask head pools from.
        answer_head_type (`"pooled"` or `"evidence"`, *optional*, defaults to `"pooled"`):
            The head of question answering: a classifier of the mean fused token, as in the paper, or one that also
            takes what the detector found for each token and attends to the regions of the image, which a head needs
            that is trained over frozen weights. The nano size has `"evidence"`.
        caption_region_attention (`bool`, *optional*, defaults to `False`):
            Whether the caption head attends to the regions of the image for each token and scores the words that fit
            them, which a head needs that is trained over frozen weights. Without, it is one layer over the fused
            tokens, as in the paper.
        score_threshold_before_nms (`float`, *optional*, defaults to 0.05):
            Label scores (before centerness) above this make candidates at inference, as the original's
            `MODEL.ATSS.INFERENCE_TH`. It is the default of `pre_nms_threshold`; the `threshold` of calls is on the
            score that is returned.
        labels (`list[str]`, *optional*):
            The classes that the model was fine-tuned for, in the order of its prompt: the default labels of detection
            and segmentation.
        tuned_prompt (`str`, *optional*):
            The prompt whose learned offsets are in `prompt_tuning.safetensors` beside the weights; see
            `layers/prompt_tuning.py`, which sets it.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of linear layers that have no rule of their own.

    Raises:
        ValueError: when fields contradict each other.

    Example:
        >>> from transformers_glipv2 import GLIPv2Config
        >>> GLIPv2Config.from_size("nano").d_model
        128
    """

    model_type = "glipv2"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig, model_type="swin", init_kwargs={"out_indices": [2, 3, 4], "drop_path_rate": 0.2}
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }
    # What `Trainer.evaluate` need not keep of every image: it takes far more memory than the answers.
    keys_to_ignore_at_inference = [
        "fused_feature_maps",
        "fused_text",
        "feature_maps",
        "text_features",
        "location_mask",
        "hidden_states",
        "vision_hidden_states",
        "attentions",
    ]
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "num_fusion_layers"}

    backbone_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    d_model: int = 256
    num_fusion_layers: int = 6
    fusion_embed_dim: int = 2048
    fusion_num_heads: int = 8
    fusion_dropout: float | int = 0.1
    use_fusion: bool = True
    anchor_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512, 1024)
    anchor_strides: list[int] | tuple[int, ...] = (8, 16, 32, 64, 128)
    max_text_length: int = 256
    num_text_layers: int = 1
    mask_padded_pixels: bool = False
    dyconv_offset_mode: Literal["released", "resized"] = "released"
    group_norm_groups: int = 16
    layer_norm_eps: float = 1e-5
    drop_block_prob: float | int = 0.0
    drop_block_size: int = 3
    prior_prob: float = 0.01
    atss_topk: int = 9
    focal_alpha: float = 0.25
    focal_gamma: float | int = 2.0
    box_loss_weight: float | int = 2.0
    centerness_loss_weight: float | int = 1.0
    intra_loss_weight: float | int = 1.0
    inter_loss_weight: float | int = 1.0
    mlm_loss_weight: float | int = 1.0
    answer_loss_weight: float | int = 1.0
    caption_loss_weight: float | int = 1.0
    contrastive_dim: int = 64
    max_contrastive_regions: int = 100
    contrastive_temperature: float = 0.07
    mask_extractor: Literal["fcn", "hourglass"] = "fcn"
    mask_num_convs: int = 4
    mask_dim: int = 256
    mask_pool_size: int = 14
    mask_feature_source: Literal["before_fusion", "after_fusion"] = "before_fusion"
    answer_head_type: Literal["pooled", "evidence"] = "pooled"
    caption_region_attention: bool = False
    score_threshold_before_nms: float | int = 0.05
    labels: list[str] | tuple[str, ...] | None = None
    tuned_prompt: str | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        # The installed package registers its pipelines; this key would demand `trust_remote_code` all the same.
        if not type(self).__module__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)
        fields = set(type(self).__dataclass_fields__)
        for name in kwargs:
            nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
            if nearest and not hasattr(self, name):
                logger.warning(f"GLIPv2Config has no field `{name}`; did you mean `{nearest[0]}`?")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Checks across fields; part of the `@strict` validation."""
        if len(self.anchor_sizes) != len(self.anchor_strides):
            raise ValueError(
                f"`anchor_sizes` has {len(self.anchor_sizes)} entries and `anchor_strides` has "
                f"{len(self.anchor_strides)}; each level needs one of both."
            )
        if self.fusion_embed_dim % self.fusion_num_heads:
            raise ValueError(
                f"`fusion_embed_dim`={self.fusion_embed_dim} is not a multiple of `fusion_num_heads`="
                f"{self.fusion_num_heads}."
            )
        if self.d_model % self.group_norm_groups:
            raise ValueError(
                f"`d_model`={self.d_model} is not a multiple of `group_norm_groups`={self.group_norm_groups}."
            )
        if not 0 < self.prior_prob < 1:
            raise ValueError(f"`prior_prob` is a probability between 0 and 1, not {self.prior_prob}.")
        if not 0 <= self.score_threshold_before_nms <= 1:
            raise ValueError(
                f"`score_threshold_before_nms` is a score between 0 and 1, not {self.score_threshold_before_nms}."
            )
        if self.labels is not None and not (self.labels and all(isinstance(name, str) for name in self.labels)):
            raise ValueError(f"`labels` must be names of classes or None, not {self.labels!r}.")
        positions = getattr(self.text_config, "max_position_embeddings", None)
        if positions is not None and self.max_text_length > positions:
            raise ValueError(
                f"`max_text_length`={self.max_text_length} is more than the text encoder's {positions} "
                "positions; lower it or raise `text_config.max_position_embeddings`."
            )

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "GLIPv2Config":
        """
        The configuration of a named size.

        Args:
            size: one of `"nano"`, `"tiny"`, `"base"`, `"large"` and `"huge"`. Weights of the original exist for tiny
                and large only.
            overrides: fields to change.

        Raises:
            ValueError: for an unknown size.
        """
        if size not in SIZES:
            raise ValueError(f"Unknown size {size!r}; choose one of {sorted(SIZES)}.")
        return cls(**{**SIZES[size], **overrides})


__all__ = ["SIZES", "GLIPv2Config"]
