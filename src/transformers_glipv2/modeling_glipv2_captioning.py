"""
Captions by a unidirectional language model over the same tower (section 4.3 of the GLIPv2 paper).

Tokens see only earlier tokens, in the text encoder and in the fused layers, and every token sees the image; the image
sees no token. So the image's way through the tower does not depend on the text: it runs once an image
(`GLIPv2VisualStates`), and a step of generation is one token's way through the text layers, over cached keys and
values.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation.utils import ALL_CACHE_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .boxes import normalize_boxes
from .configuration_glipv2 import GLIPv2Config
from .layers.caption_steps import (
    GLIPv2VisualStates,
    causal_mask,
    grow_cache,
    images_to_texts,
    maps_without_text,
    prefixes,
    texts_to_images,
    tokens_through_layer,
)
from .layers.feature_maps import FeatureMaps, crop_maps, flatten_levels, has_padding, join_maps, map_shapes
from .layers.input_checks import check_has_tokens, check_keywords, check_text
from .layers.region_attention import GLIPv2Locations, GLIPv2RegionWordAttention, location_features
from .losses import caption_loss, next_tokens
from .modeling_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2FreezableDetector,
    GLIPv2ImageFeatures,
    GLIPv2ObjectDetectionOutput,
    GLIPv2PreTrainedModel,
    selected_states,
    word_embedding_name,
)
from .modeling_glipv2_pretraining import GLIPv2ContrastiveHead, GLIPv2MaskedLMHead
from .modeling_glipv2_vqa import require_fusion

# transformers calls the cache `past_key_values` up to 5.23 and `cache` from then on.
CACHE_NAME = ALL_CACHE_NAMES[0]
# What the loop of generation tells `prepare_inputs_for_generation` alone.
GENERATION_LOOP_KEYWORDS = ("next_sequence_length", "is_first_iteration", "cache_position")
# At first the attended regions score words by 10 in all. Label embeddings and regions that fit are compared by about
# their cosine, and with 10 in front the word that fits best stands out among the logits of a trained decoder.
INITIAL_LABEL_GATE = 10.0
# So many tokens come once in a caption: small models repeat themselves ("a man and a man and a man").
NO_REPEAT_NGRAM_SIZE = 3


@dataclass
class GLIPv2CaptioningOutput(ModelOutput):
    """
    Output of `GLIPv2ForConditionalGeneration`.

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `labels`):
            Cross entropy of each next token.
        loss_dict (`dict[str, torch.FloatTensor]`, with `labels`):
            The same as "loss_caption".
        logits (`torch.FloatTensor` of shape `(batch, tokens, vocabulary)`):
            Scores of the token after each token, before the softmax.
        cache (`Cache`, with `use_cache`):
            Keys and values of the text encoder's layers and then of the fused ones, for the next step.
        fused_text (`torch.FloatTensor` of shape `(batch, tokens, text_dim)`), text_features (as `fused_text`):
            Token features after and before the tower.
        fused_feature_maps, feature_maps (`tuple` of 5 `torch.FloatTensor` of shape `(batch, d_model, H_l, W_l)`):
            P3..P7 after and before the tower; `None` where `visual_states` were given.
        visual_states (`GLIPv2VisualStates`):
            What the tokens attended to, for further calls about the same images.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(batch, tokens, text_dim)`, with
        `output_hidden_states`):
            Token features before the first and after each layer of the tower.
        attentions (`tuple` of `torch.FloatTensor` of shape `(batch, heads, tokens, locations)`, with
        `output_attentions`):
            What each token attends to in its image, for each layer of the tower; locations of all levels, P3 first,
            row-major.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    cache: Cache | None = None
    fused_text: torch.FloatTensor | None = None
    text_features: torch.FloatTensor | None = None
    fused_feature_maps: FeatureMaps | None = None
    feature_maps: FeatureMaps | None = None
    visual_states: GLIPv2VisualStates | None = None
    hidden_states: tuple[torch.FloatTensor | None, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    @property
    def past_key_values(self) -> Cache | None:
        """`cache`, by the name that assisted generation of transformers 5.23 reads."""
        return self.cache


# Head ----------------------------------------------------------------------------------------------------------------


class GLIPv2CaptionHead(GLIPv2MaskedLMHead):
    """
    Scores of the next token: one layer over the fused tokens, with `config.caption_region_attention` after
    [`GLIPv2RegionWordAttention`].
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__(config)
        self.region_attention = (
            GLIPv2RegionWordAttention(config, config.text_config.vocab_size)
            if config.caption_region_attention
            else None
        )

    def forward(self, text: torch.Tensor, visual_states: GLIPv2VisualStates) -> torch.Tensor:
        """
        Args:
            text: fused tokens `(texts, tokens, text_dim)`; each image has equally many texts, side by side.
            visual_states: of the images.

        Returns:
            `(texts, tokens, vocabulary)`.
        """
        if self.region_attention is None:
            return super().forward(text)
        groups = texts_to_images(text, visual_states.group_sizes)
        found = [
            self.region_attention(tokens, locations)
            for tokens, locations in zip(groups, visual_states.locations, strict=True)
        ]
        text, named = (images_to_texts(list(parts), len(text)) for parts in zip(*found, strict=True))
        return super().forward(text) + self.region_attention.label_embeddings(named)


def init_caption_head(head: GLIPv2CaptionHead) -> None:
    """Sets the initial weights of a head that have rules of their own; weights already loaded are left alone."""
    if head.region_attention is not None:
        gate = head.region_attention.gate
        init.zeros_(gate.weight)
        init.constant_(gate.bias, INITIAL_LABEL_GATE / head.region_attention.num_heads)


# Tower ---------------------------------------------------------------------------------------------------------------


def make_visual_states(
    model: GLIPv2PreTrainedModel, image_features: GLIPv2ImageFeatures, final_maps: bool = False, frozen: bool = False
) -> GLIPv2VisualStates:
    """
    What any number of captions of some images attend to.

    Args:
        model: with a detector and a `caption_head`.
        image_features: from `get_image_features`.
        final_maps: also give the maps after the tower.
        frozen: whether the tower needs no gradients.
    """
    maps, image_sizes = image_features.feature_maps, image_features.image_sizes
    own_shapes = image_features.own_shapes if has_padding(image_features.own_shapes, maps) else None
    images, sizes = [maps], [image_sizes]
    if own_shapes is not None:
        images = [crop_maps(maps, image, shapes) for image, shapes in enumerate(own_shapes)]
        sizes = image_sizes.split(1)
    region_attention = model.caption_head.region_attention
    needed = final_maps or region_attention is not None
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        groups, final = zip(*(maps_without_text(model.model.layers, one, needed) for one in images), strict=True)
    locations = None
    if region_attention is not None:
        locations = [caption_locations(model, *each) for each in zip(images, final, sizes, strict=True)]
    level_shapes, joined = map_shapes(maps), None
    if final_maps:
        joined = final[0] if own_shapes is None else join_maps(list(final), level_shapes)
    return GLIPv2VisualStates(list(groups), locations, level_shapes, own_shapes, joined)


def caption_locations(
    model: GLIPv2PreTrainedModel, maps: FeatureMaps, final_maps: FeatureMaps, image_sizes: torch.Tensor
) -> GLIPv2Locations:
    """What the caption head attends to, from the maps before and after the tower."""
    anchors = model.anchors(map_shapes(final_maps), final_maps[0].device)
    boxes = normalize_boxes(anchors.expand(len(image_sizes), -1, -1), image_sizes)
    centerness = flatten_levels([model.detection_head.centerness_predictor(level) for level in final_maps])
    features = location_features(maps, final_maps)
    return model.caption_head.region_attention.locations(
        features, maps, centerness.squeeze(-1).detach(), boxes[..., :2]
    )


def read_captions(
    model: GLIPv2PreTrainedModel,
    input_ids: torch.LongTensor | None,
    inputs_embeds: torch.FloatTensor | None,
    attention_mask: torch.LongTensor | None,
    visual_states: GLIPv2VisualStates,
    cache: Cache | None = None,
    output_attentions: bool = False,
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
    """
    Tokens of captions through the text encoder and the tower.

    Args:
        model: with a detector and a `caption_head`; the rest as of `GLIPv2ForConditionalGeneration.forward`.

    Returns:
        The tokens before the first and after each layer of the tower, `(texts, tokens, text_dim)` each; the texts fit
        the images. And what they attend to in each layer, `(texts, heads, tokens, locations)`, or `None`.

    Raises:
        ValueError: when texts, images or mask do not fit.
    """
    check_text(input_ids, inputs_embeds, model.config)
    tokens = input_ids if inputs_embeds is None else inputs_embeds
    (num_texts, num_tokens), num_images = tokens.shape[:2], visual_states.num_images
    if num_texts == 1 < num_images:
        num_texts, tokens = num_images, tokens.expand(num_images, *tokens.shape[1:])
        attention_mask = None if attention_mask is None else attention_mask.expand(num_images, -1)
    if num_texts % num_images:
        raise ValueError(
            f"There are {num_texts} texts and {num_images} images; pass equally many texts an image, or one for all."
        )
    encoder_layers = model.config.text_config.num_hidden_layers
    if cache is not None:
        grow_cache(cache, encoder_layers + len(model.model.layers))
    num_keys = num_tokens + (cache.get_seq_length() if cache is not None else 0)
    if attention_mask is None:
        attention_mask = tokens.new_ones(num_texts, num_keys, dtype=torch.long)
    if attention_mask.shape != (num_texts, num_keys):
        raise ValueError(
            f"`attention_mask` must have shape {(num_texts, num_keys)} (texts, tokens of the cache and of the text), "
            f"not {tuple(attention_mask.shape)}."
        )
    check_has_tokens(attention_mask)
    mask, positions = causal_mask(attention_mask, num_tokens)
    encoder, encoder_mask = model.model.text_encoder, mask
    if encoder.config._attn_implementation == "eager":
        # Eager attention adds its mask to the scores.
        lowest = torch.finfo(encoder.dtype).min
        encoder_mask = torch.zeros_like(mask, dtype=encoder.dtype).masked_fill(~mask, lowest)
    inputs = {"input_ids" if inputs_embeds is None else "inputs_embeds": tokens}
    if cache is not None:
        inputs[CACHE_NAME] = cache
    states = [encoder(**inputs, attention_mask=encoder_mask, position_ids=positions).last_hidden_state]
    attentions = []
    for index, layer in enumerate(model.model.layers):
        text, attention = tokens_through_layer(
            layer, states[-1], visual_states, index, mask, cache, encoder_layers + index, output_attentions
        )
        states.append(text)
        attentions.append(attention)
    return tuple(states), tuple(attentions) if output_attentions else None


# Model ---------------------------------------------------------------------------------------------------------------


def special_token_ids(tokenizer: Any) -> dict[str, int | None]:
    """What a tokenizer's texts begin, end and are padded with, under the names of a generation configuration."""
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    return {
        "bos_token_id": tokenizer.bos_token_id if first is None else first,
        "eos_token_id": tokenizer.eos_token_id if last is None else last,
        "pad_token_id": tokenizer.pad_token_id,
    }


class GLIPv2ForConditionalGeneration(GLIPv2FreezableDetector, GLIPv2ForObjectDetection, GenerationMixin):
    """
    Captions of images, from nothing or from a given beginning; `ground` finds boxes with the same weights.

    Captions begin with `generation_config.bos_token_id` and end with `eos_token_id` ([CLS] and [SEP] of BERT), which
    come from `config.text_config`; `set_special_tokens` sets them. No three tokens come twice in a caption where
    neither the call nor `generation_config` has a `no_repeat_ngram_size`; 0 allows it.

    Args:
        config: sizes and options.

    Raises:
        ValueError: for a configuration without fusion.

    Example:
        >>> model = GLIPv2ForConditionalGeneration.from_pretrained(folder)
        >>> inputs = processor(images=[image], text=["an image of"])
        >>> processor.batch_decode(model.generate(**inputs, num_beams=5), skip_special_tokens=True)
        ['an image of a red chair and two dogs']
    """

    def __init__(self, config: GLIPv2Config):
        require_fusion(config, type(self).__name__)
        super().__init__(config)
        self.caption_head = GLIPv2CaptionHead(config)
        self._tied_weights_keys = {"caption_head.decoder.weight": word_embedding_name(self)}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2CaptionHead):
            init_caption_head(module)

    @torch.no_grad()
    def start_from_contrast(
        self, contrastive_head: GLIPv2ContrastiveHead, tokenizer: Any, batch_size: int = 512
    ) -> None:
        """
        Starts the region attention of a new head from what pre-training learned of regions and words: regions are
        projected as in L_inter, and the label embedding of a word is what the text encoder makes of the word alone.

        Args:
            contrastive_head: of `GLIPv2ForPreTraining`.
            tokenizer: of the text encoder.
            batch_size: words that are encoded together.

        Raises:
            ValueError: when `config.caption_region_attention` is off.
        """
        region_attention = self.caption_head.region_attention
        if region_attention is None:
            raise ValueError(
                "The caption head has no region attention; load the model with `caption_region_attention=True`."
            )
        region_attention.image_projection.load_state_dict(contrastive_head.image_projection.state_dict())
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
        words = torch.arange(len(region_attention.label_embeddings.weight), device=self.device)
        for part in words.split(batch_size):
            texts = torch.stack([torch.full_like(part, first), part, torch.full_like(part, last)], dim=1)
            features = self.get_text_features(texts, torch.ones_like(texts), return_dict=True).last_hidden_state[:, 1]
            region_attention.label_embeddings.weight[part] = F.normalize(
                contrastive_head.text_projection(features), dim=-1
            )

    def get_output_embeddings(self) -> nn.Module:
        return self.caption_head.decoder

    def set_output_embeddings(self, value: nn.Module):
        self.caption_head.decoder = value

    def set_special_tokens(self, tokenizer: Any) -> None:
        """Captions begin, end and are padded as this tokenizer's texts are; saved with the configuration."""
        for name, value in special_token_ids(tokenizer).items():
            setattr(self.config.text_config, name, value)
            setattr(self.generation_config, name, value)

    def get_visual_states(self, image_features: GLIPv2ImageFeatures, final_maps: bool = False) -> GLIPv2VisualStates:
        """
        What any number of captions of these images attend to.

        Args:
            image_features: from `get_image_features`.
            final_maps: also give the maps after the tower.
        """
        return make_visual_states(self, image_features, final_maps, self.detector_is_frozen)

    @can_return_tuple
    def forward(  # type: ignore[misc]  # `TransformersKwargs` has the two flags for attentions and states as well
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        image_features: GLIPv2ImageFeatures | None = None,
        visual_states: GLIPv2VisualStates | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        shift_labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GLIPv2CaptioningOutput:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`.
            input_ids: `(texts, tokens)`; equally many texts for each image, side by side, or one text for all.
            attention_mask: `(texts, tokens)`, 1 for tokens and 0 for padding, on whatever side. With a cache also for
                the tokens in it.
            pixel_mask: `(batch, height, width)`, 1 for the image and 0 for padding.
            image_features: from `get_image_features`, in place of `pixel_values` and `pixel_mask`.
            visual_states: from `get_visual_states`, in place of both.
            inputs_embeds: `(texts, tokens, text_dim)` in place of `input_ids`.
            labels: `(texts, tokens)`, for training: `input_ids` with -100 at tokens that are not to be learned
                (padding).
            cache: keys and values of earlier tokens; those of `input_ids` are added. `past_key_values` is its name in
                older versions of transformers.
            use_cache: start a cache where none is given.
            logits_to_keep: give logits of so many last tokens only, 0: of all; or indices of the tokens.
            output_hidden_states: also return the tokens before and after each layer of the tower; an index or indices
                return `None` in place of the others.
            output_attentions: also return what each token attends to in its image.
            shift_labels: `(texts, tokens)`, in place of `labels`: the token after each token, where texts are divided
                over processes (sequence parallelism).
            kwargs: `num_items_in_batch`, the tokens to be learned in all micro-batches of a step, by which `Trainer`
                has the loss divided under gradient accumulation.

        Raises:
            TypeError: for an unknown keyword.
            ValueError: when a side is missing, or texts, images or labels do not fit.
        """
        check_keywords(kwargs, ("num_items_in_batch",), self.forward)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if past_key_values is not None and CACHE_NAME != "past_key_values":
            warnings.warn(f"`past_key_values` is deprecated; pass it as `{CACHE_NAME}`.", FutureWarning, stacklevel=2)
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache:
            cache = DynamicCache()
        if visual_states is None:
            if image_features is None:
                if pixel_values is None:
                    raise ValueError(
                        "Pass `pixel_values`, `image_features` from `get_image_features`, or `visual_states` from "
                        "`get_visual_states`."
                    )
                with self.detector_gradients():
                    image_features = self.get_image_features(pixel_values, pixel_mask, return_dict=True)
            visual_states = self.get_visual_states(image_features, final_maps=True)
        with self.detector_gradients():
            states, attentions = read_captions(
                self, input_ids, inputs_embeds, attention_mask, visual_states, cache, output_attentions
            )
        last = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.caption_head(states[-1][:, last], visual_states)
        loss = None
        if labels is not None or shift_labels is not None:
            targets = next_tokens(labels) if shift_labels is None else shift_labels
            loss = caption_loss(logits, targets, kwargs.get("num_items_in_batch"))
        kept = selected_states(output_hidden_states, len(states))
        return GLIPv2CaptioningOutput(
            loss=loss,
            loss_dict=None if loss is None else {"loss_caption": loss},
            logits=logits,
            cache=cache,
            fused_text=states[-1],
            text_features=states[0],
            fused_feature_maps=visual_states.fused_feature_maps,
            feature_maps=None if image_features is None else image_features.feature_maps,
            visual_states=visual_states,
            hidden_states=tuple(s if i in kept else None for i, s in enumerate(states)) if kept else None,  # type: ignore[misc]
            attentions=attentions,
        )

    def ground(self, **inputs: Any) -> GLIPv2ObjectDetectionOutput:
        """As `GLIPv2ForObjectDetection.forward`: boxes of what a text names; here image and text see each other."""
        return super().forward(**inputs)

    # Generation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: Any = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        image_features: GLIPv2ImageFeatures | None = None,
        visual_states: GLIPv2VisualStates | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Captions of images, which pass the tower once whatever is generated.

        Args:
            inputs, input_ids: `(texts, tokens)`, how captions begin, as the processor gives them: tokens of the end
                and padding on the right are removed. `None` begins with nothing. Texts are those of `forward`.
            generation_config, kwargs: as of `GenerationMixin.generate`, such as `num_beams`, `do_sample`,
                `max_new_tokens`; `no_repeat_ngram_size` is 3 by default, and 0 switches it off.
            pixel_values, pixel_mask, image_features, visual_states, attention_mask: as of `forward`.
            inputs_embeds: `(texts, tokens, text_dim)`, what the beginnings are read as, token for token; always with
                a cache. Without `input_ids` the result has the new tokens only.

        Returns:
            As `GenerationMixin.generate`: `(texts, tokens)` with the beginnings, padded on both sides. No text is
            longer than `config.max_text_length`.

        Raises:
            ValueError: when no image is given, texts, their embeddings and images do not fit, a beginning fills the
                whole text, or there is none and no token begins captions; or for another `cache_implementation` than
                `"dynamic"`.
        """
        if visual_states is None:
            if image_features is None:
                if pixel_values is None:
                    raise ValueError("Pass the images to caption: `pixel_values`, or `image_features` of them.")
                image_features = self.get_image_features(pixel_values, pixel_mask, return_dict=True)
            visual_states = self.get_visual_states(image_features)
        input_ids = inputs if input_ids is None else input_ids
        configs = (generation_config, self.generation_config)
        if all(getattr(config, "no_repeat_ngram_size", None) is None for config in configs):
            kwargs.setdefault("no_repeat_ngram_size", NO_REPEAT_NGRAM_SIZE)
        if inputs_embeds is not None:
            return self._generate_from_embeddings(
                inputs_embeds, input_ids, attention_mask, visual_states, generation_config, **kwargs
            )
        first, last, padding = self._special_tokens(generation_config, kwargs)
        images = visual_states.num_images
        if input_ids is None:
            if first is None:
                raise ValueError(
                    "How captions begin is not known: `generation_config` has no `bos_token_id`. Pass `input_ids`, or "
                    "call `model.set_special_tokens(tokenizer)` once; the tokens are saved with the model."
                )
            input_ids = torch.full((images, 1), first, device=self.device)
            attention_mask = None
        if all(kwargs.get(name) is None for name in ALL_CACHE_NAMES):
            input_ids, attention_mask = prefixes(input_ids, attention_mask, first, last, padding)
        if len(input_ids) == 1 < images:
            input_ids, attention_mask = (ids.repeat(images, 1) for ids in (input_ids, attention_mask))
        self._check_beginning(input_ids.shape[1])
        return super().generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=generation_config,
            visual_states=visual_states,
            **kwargs,
        )

    def _generate_from_embeddings(
        self,
        inputs_embeds: torch.FloatTensor,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.LongTensor | None,
        visual_states: GLIPv2VisualStates,
        generation_config: Any,
        **kwargs: Any,
    ) -> Any:
        """The rest of `generate` for beginnings that are read as `inputs_embeds`; nothing is added or removed."""
        images = visual_states.num_images
        if len(inputs_embeds) == 1 < images:
            inputs_embeds, input_ids, attention_mask = (
                None if one is None else one.repeat(images, *[1] * (one.dim() - 1))
                for one in (inputs_embeds, input_ids, attention_mask)
            )
        texts, tokens = inputs_embeds.shape[:2]
        if input_ids is not None and tuple(input_ids.shape) != (texts, tokens):
            raise ValueError(
                f"`input_ids` {tuple(input_ids.shape)} and `inputs_embeds` {tuple(inputs_embeds.shape)} must be of "
                "the same tokens."
            )
        self._check_beginning(tokens)
        if attention_mask is None:
            attention_mask = torch.ones(texts, tokens, dtype=torch.long, device=inputs_embeds.device)
        if input_ids is None:
            input_ids = torch.empty(texts, 0, dtype=torch.long, device=inputs_embeds.device)
        return super().generate(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            generation_config=generation_config,
            visual_states=visual_states,
            **kwargs,
        )

    def _check_beginning(self, num_tokens: int) -> None:
        if num_tokens >= self.max_caption_tokens:
            raise ValueError(
                f"The beginning of a caption has {num_tokens} tokens, and a text at most {self.max_caption_tokens}; "
                "shorten it."
            )

    @property
    def max_caption_tokens(self) -> int:
        """Tokens of a caption at most, special tokens included."""
        positions = getattr(self.config.text_config, "max_position_embeddings", self.config.max_text_length)
        return min(self.config.max_text_length, positions)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor | None = None,
        visual_states: GLIPv2VisualStates | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The tokens that the cache does not hold yet; what else is given goes on to `forward`."""
        cache = past_key_values if cache is None else cache
        known = 0 if cache is None else cache.get_seq_length()
        if inputs_embeds is not None and known == 0:
            tokens = {"inputs_embeds": inputs_embeds}
        else:
            # The cache may have more tokens than there are ids: those of a beginning without ids, and with
            # `synced_gpus` those of a process whose captions are finished, which goes on for the others' sake.
            tokens = {"input_ids": input_ids[:, min(known, input_ids.shape[1] - 1) :]}
        return {
            **tokens,
            "attention_mask": attention_mask,
            "visual_states": visual_states,
            "cache": cache,
            **{name: value for name, value in kwargs.items() if name not in GENERATION_LOOP_KEYWORDS},
        }

    def _prepare_model_inputs(
        self, inputs: torch.Tensor | None, bos_token_id: torch.Tensor | None, model_kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, str, dict[str, Any]]:
        # The default looks for the beginnings under `main_input_name`, which is that of the images.
        if "inputs_embeds" in model_kwargs:
            return model_kwargs["inputs_embeds"], "inputs_embeds", model_kwargs
        return model_kwargs.pop("input_ids"), "input_ids", model_kwargs

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic", "dynamic_full"):  # the last by generation with an assistant
            raise ValueError(
                f"`cache_implementation` is {kind!r}; captions need a cache that grows by the layers of the tower, so "
                'leave it out or pass "dynamic".'
            )
        # The default one has as many layers as the text encoder; this one grows.
        if generation_config.use_cache is not False and model_kwargs.get(CACHE_NAME) is None:
            model_kwargs[CACHE_NAME] = DynamicCache()

    def _prepare_generated_length(
        self, generation_config: Any, *args: Any, input_ids_length: int, inputs_tensor: torch.Tensor, **kwargs: Any
    ) -> Any:
        generation_config = super()._prepare_generated_length(  # type: ignore[misc]
            generation_config, *args, input_ids_length=input_ids_length, inputs_tensor=inputs_tensor, **kwargs
        )
        # Lengths count ids; a beginning of embeddings may have none.
        most = self.max_caption_tokens - (inputs_tensor.shape[1] - input_ids_length)
        generation_config.max_length = min(generation_config.max_length, most)
        return generation_config

    def _special_tokens(self, generation_config: Any, kwargs: dict[str, Any]) -> tuple[int | None, set[int], int]:
        """
        Beginning, ends and padding of captions, as the call, its or the model's generation config say; a `None` in the
        call is an answer too: no token ends captions.
        """
        configs = (
            [self.generation_config] if generation_config is None else [generation_config, self.generation_config]
        )
        found = {}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            values = [kwargs[name]] if name in kwargs else [getattr(config, name, None) for config in configs]
            found[name] = next((value for value in values if value is not None), None)
        last = found["eos_token_id"]
        last = set() if last is None else set(torch.as_tensor(last).flatten().tolist())
        padding = found["pad_token_id"]
        return found["bos_token_id"], last, min(last, default=0) if padding is None else padding


__all__ = ["GLIPv2CaptioningOutput", "GLIPv2ForConditionalGeneration", "GLIPv2VisualStates"]
