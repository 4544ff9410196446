"""
Captions by a unidirectional language model over the same tower (section 4.3 of the GLIPv2 paper).

Words see only earlier words, in the text encoder and in the fused layers, and every word sees the image; the image
sees no word. So the image's way through the tower does not depend on the words: it runs once an image
(`GLIPv2VisualStates`), and a step of generation is one word's way through the text layers, over cached keys and
values.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation.utils import ALL_CACHE_NAMES
from transformers.utils import ModelOutput, can_return_tuple

from .boxes import normalize_boxes
from .configuration_glipv2 import GLIPv2Config
from .layers.caption_steps import (
    GLIPv2VisualStates,
    causal_mask,
    images_to_rows,
    maps_without_words,
    prefixes,
    rows_to_images,
    words_through_layer,
)
from .layers.feature_maps import FeatureMaps, crop_maps, flatten_levels, join_maps, map_shapes, own_map_shapes
from .layers.region_attention import GLIPv2Locations, GLIPv2RegionWordAttention, location_features
from .losses import caption_loss
from .modeling_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2FreezableDetector,
    GLIPv2ImageFeatures,
    GLIPv2ObjectDetectionOutput,
    check_text,
    word_embedding_name,
)
from .modeling_glipv2_pretraining import GLIPv2ContrastiveHead, GLIPv2MaskedLMHead
from .modeling_glipv2_vqa import require_fusion

# transformers calls the cache `past_key_values` up to 5.23 and `cache` from then on.
CACHE_NAME = ALL_CACHE_NAMES[0]


@dataclass
class GLIPv2CaptioningOutput(ModelOutput):
    """
    Output of `GLIPv2ForConditionalGeneration`.

    Args:
        loss (`torch.FloatTensor` of shape `()`, with `labels`):
            Cross entropy of each next word.
        loss_dict (`dict[str, torch.FloatTensor]`, with `labels`):
            The same as "loss_caption".
        logits (`torch.FloatTensor` of shape `(batch, tokens, vocabulary)`):
            Scores of the word after each word, before the softmax.
        cache (`Cache`, with `use_cache`):
            Keys and values of the text encoder's layers and then of the fused ones, for the next step.
        fused_text (`torch.FloatTensor` of shape `(batch, tokens, text_dim)`), text_features (as `fused_text`):
            The words after and before the tower.
        fused_feature_maps, feature_maps (`tuple` of 5 `torch.FloatTensor` of shape `(batch, d_model, H_l, W_l)`):
            P3..P7 after and before the tower; `None` where `visual_states` were given.
        visual_states (`GLIPv2VisualStates`):
            What the words attended to, for further calls about the same images.
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
            text: fused words `(rows, tokens, text_dim)`; each image has equally many rows, side by side.
            visual_states: of the images.

        Returns:
            `(rows, tokens, vocabulary)`.
        """
        if self.region_attention is None:
            return super().forward(text)
        groups = rows_to_images(text, visual_states.group_sizes)
        found = [
            self.region_attention(words, places) for words, places in zip(groups, visual_states.places, strict=True)
        ]
        text, named = (images_to_rows(list(parts), len(text)) for parts in zip(*found, strict=True))
        return super().forward(text) + self.region_attention.label_embeddings(named)


# Model ---------------------------------------------------------------------------------------------------------------


class GLIPv2ForConditionalGeneration(GLIPv2FreezableDetector, GLIPv2ForObjectDetection, GenerationMixin):
    """
    Captions of images, from the first word or from a given beginning; `ground` finds boxes with the same weights.

    Captions begin with `generation_config.bos_token_id` and end with `eos_token_id` ([CLS] and [SEP] of BERT), which
    come from `config.text_config`; `set_special_tokens` sets them.

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

    # Generation would drop the images otherwise.
    main_input_name = "input_ids"

    def __init__(self, config: GLIPv2Config):
        require_fusion(config, type(self).__name__)
        super().__init__(config)
        self.caption_head = GLIPv2CaptionHead(config)
        self._tied_weights_keys = {"caption_head.decoder.weight": word_embedding_name(self)}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2CaptionHead) and module.region_attention is not None:
            # All places count alike at first, and enough for their names to be heard.
            init.zeros_(module.region_attention.gate.weight)
            init.constant_(module.region_attention.gate.bias, 10 / module.region_attention.num_heads)

    @torch.no_grad()
    def start_from_contrast(
        self, contrastive_head: GLIPv2ContrastiveHead, tokenizer: Any, batch_size: int = 512
    ) -> None:
        """
        Starts the names of a new head from what pre-training learnt of regions and words: a region looks as L_inter
        sees it, and a word of the vocabulary is what the text encoder makes of it alone.

        Args:
            contrastive_head: of `GLIPv2ForPreTraining`.
            tokenizer: of the text encoder.
            batch_size: words that are encoded together.

        Raises:
            ValueError: when `config.caption_region_attention` is off.
        """
        region_attention = self.caption_head.region_attention
        if region_attention is None:
            raise ValueError("The caption head names nothing; load the model with `caption_region_attention=True`.")
        region_attention.image_projection.load_state_dict(contrastive_head.image_projection.state_dict())
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
        words = torch.arange(len(region_attention.label_embeddings.weight), device=self.device)
        for part in words.split(batch_size):
            texts = torch.stack([torch.full_like(part, first), part, torch.full_like(part, last)], dim=1)
            features = self.get_text_features(texts, torch.ones_like(texts))[:, 1]
            region_attention.label_embeddings.weight[part] = F.normalize(
                contrastive_head.text_projection(features), dim=-1
            )

    def get_output_embeddings(self) -> nn.Module:
        return self.caption_head.decoder

    def set_output_embeddings(self, value: nn.Module):
        self.caption_head.decoder = value

    def enable_input_require_grads(self) -> None:
        """Of the words alone: the default also asks the backbone's, which does not always give a single tensor."""
        self._require_grads_hooks = [
            self.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_(True))
        ]
        self._require_grads_hook = self._require_grads_hooks[0]

    def set_special_tokens(self, tokenizer: Any) -> None:
        """Captions begin, end and are padded as this tokenizer's texts are; saved with the configuration."""
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
        ids = {
            "bos_token_id": tokenizer.bos_token_id if first is None else first,
            "eos_token_id": tokenizer.eos_token_id if last is None else last,
            "pad_token_id": tokenizer.pad_token_id,
        }
        for name, value in ids.items():
            setattr(self.config.text_config, name, value)
            setattr(self.generation_config, name, value)

    def get_visual_states(self, image_features: GLIPv2ImageFeatures, final_maps: bool = False) -> GLIPv2VisualStates:
        """
        What any number of captions of these images attend to.

        Args:
            image_features: from `get_image_features`.
            final_maps: also give the maps after the tower.
        """
        own_shapes = None
        maps, image_sizes = image_features.feature_maps, image_features.image_sizes
        if self.config.mask_padded_pixels:
            own_shapes = own_map_shapes(image_sizes, map_shapes(maps), self.config.anchor_strides)
        images, sizes = [maps], [image_sizes]
        if own_shapes is not None:
            images = [crop_maps(maps, image, shapes) for image, shapes in enumerate(own_shapes)]
            sizes = image_sizes.split(1)
        region_attention = self.caption_head.region_attention
        needed = final_maps or region_attention is not None
        with self.detector_gradients():
            groups, final = zip(*(maps_without_words(self.model.layers, one, needed) for one in images), strict=True)
        places = None
        if region_attention is not None:
            places = [self._places(*each) for each in zip(images, final, sizes, strict=True)]
        if not final_maps:
            return GLIPv2VisualStates(list(groups), places)
        joined = final[0] if own_shapes is None else join_maps(list(final), map_shapes(maps))
        return GLIPv2VisualStates(list(groups), places, joined)

    def _places(self, maps: FeatureMaps, final_maps: FeatureMaps, image_sizes: torch.Tensor) -> GLIPv2Locations:
        """What the caption head attends to, from the maps before and after the tower."""
        anchors = self.anchors(map_shapes(final_maps), final_maps[0].device)
        boxes = normalize_boxes(anchors.expand(len(image_sizes), -1, -1), image_sizes)
        centerness = flatten_levels([self.detection_head.centerness_predictor(level) for level in final_maps])
        looks = location_features(maps, final_maps)
        return self.caption_head.region_attention.places(looks, maps, centerness.squeeze(-1).detach(), boxes[..., :2])

    @can_return_tuple
    def forward(
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
        logits_to_keep: int = 0,
    ) -> GLIPv2CaptioningOutput:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`.
            input_ids: `(rows, tokens)`; a multiple of the images, an image's rows side by side, or one row for all.
            attention_mask: `(rows, tokens)`, 1 for words and 0 for padding, on whatever side. With a cache also for
                the words in it.
            pixel_mask: `(batch, height, width)`, 1 for the image and 0 for padding.
            image_features: from `get_image_features`, in place of `pixel_values` and `pixel_mask`.
            visual_states: from `get_visual_states`, in place of both.
            inputs_embeds: `(rows, tokens, text_dim)` in place of `input_ids`.
            labels: `(rows, tokens)`, for training: `input_ids` with -100 at words that are not to be learnt (padding).
            cache: keys and values of earlier words; those of `input_ids` are added. `past_key_values` is its name in
                older versions of transformers.
            use_cache: start a cache where none is given.
            logits_to_keep: give logits of so many last words only; 0: of all.

        Raises:
            ValueError: when a side is missing, or rows, images or labels do not fit.
        """
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
                    image_features = self.get_image_features(pixel_values, pixel_mask)
            visual_states = self.get_visual_states(image_features, final_maps=True)
        with self.detector_gradients():
            text_features, mask = self._encode_words(input_ids, inputs_embeds, attention_mask, visual_states, cache)
            text = self._read_image(text_features, visual_states, mask, cache)
        logits = self.caption_head(text[:, -logits_to_keep:], visual_states)
        loss = None if labels is None else caption_loss(logits, labels)
        return GLIPv2CaptioningOutput(
            loss=loss,
            loss_dict=None if loss is None else {"loss_caption": loss},
            logits=logits,
            cache=cache,
            fused_text=text,
            text_features=text_features,
            fused_feature_maps=visual_states.fused_feature_maps,
            feature_maps=None if image_features is None else image_features.feature_maps,
            visual_states=visual_states,
        )

    def ground(self, **inputs: Any) -> GLIPv2ObjectDetectionOutput:
        """As `GLIPv2ForObjectDetection.forward`: boxes of what a text names; here image and words see each other."""
        return GLIPv2ForObjectDetection.forward(self, **inputs)

    def _encode_words(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor | None,
        attention_mask: torch.LongTensor | None,
        visual_states: GLIPv2VisualStates,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Words before the tower, `(rows, tokens, text_dim)`, and the causal mask; rows fit the images."""
        check_text(input_ids, inputs_embeds, self.config)
        words = input_ids if inputs_embeds is None else inputs_embeds
        (rows, tokens), images = words.shape[:2], visual_states.num_images
        if rows == 1 < images:
            rows, words = images, words.expand(images, *words.shape[1:])
            attention_mask = None if attention_mask is None else attention_mask.expand(images, -1)
        if rows % images:
            raise ValueError(
                f"There are {rows} texts and {images} images; pass equally many texts an image, or one for all."
            )
        keys = tokens + (cache.get_seq_length() if cache is not None else 0)
        if attention_mask is None:
            attention_mask = words.new_ones(rows, keys, dtype=torch.long)
        if attention_mask.shape != (rows, keys):
            raise ValueError(
                f"`attention_mask` must have shape {(rows, keys)} (texts, words of the cache and of the text), not "
                f"{tuple(attention_mask.shape)}."
            )
        mask, positions = causal_mask(attention_mask, tokens)
        encoder, encoder_mask = self.model.text_encoder, mask
        if encoder.config._attn_implementation == "eager":
            # Eager attention adds its mask to the scores.
            lowest = torch.finfo(encoder.dtype).min
            encoder_mask = torch.zeros_like(mask, dtype=encoder.dtype).masked_fill(~mask, lowest)
        inputs = {"input_ids" if inputs_embeds is None else "inputs_embeds": words}
        if cache is not None:
            inputs[CACHE_NAME] = cache
        encoded = encoder(**inputs, attention_mask=encoder_mask, position_ids=positions)
        return encoded.last_hidden_state, mask

    def _read_image(
        self, text: torch.Tensor, visual_states: GLIPv2VisualStates, mask: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor:
        """Words after the tower."""
        encoder_layers = self.config.text_config.num_hidden_layers
        for index, layer in enumerate(self.model.layers):
            maps = [group[index] for group in visual_states.groups]
            text = words_through_layer(layer, text, maps, mask, cache, encoder_layers + index)
        return text

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
        **kwargs: Any,
    ) -> Any:
        """
        Captions of images, which pass the tower once whatever is generated.

        Args:
            inputs, input_ids: `(rows, tokens)`, how captions begin, as the processor gives them: marks of the end and
                padding on the right are taken away. `None` begins with the first word. Rows are those of `forward`.
            generation_config, kwargs: as of `GenerationMixin.generate`, such as `num_beams`, `do_sample`,
                `max_new_tokens`.
            pixel_values, pixel_mask, image_features, visual_states, attention_mask: as of `forward`.

        Returns:
            As `GenerationMixin.generate`: `(rows, tokens)` with the beginnings, padded on both sides. No text is
            longer than `config.max_text_length`.

        Raises:
            ValueError: when no image is given, rows and images do not fit, a beginning fills the whole text, or
                no special tokens are known.
        """
        if visual_states is None:
            if image_features is None:
                if pixel_values is None:
                    raise ValueError("Pass the images to caption: `pixel_values`, or `image_features` of them.")
                image_features = self.get_image_features(pixel_values, pixel_mask)
            visual_states = self.get_visual_states(image_features)
        first, last, padding = self._special_tokens(generation_config, kwargs)
        input_ids = inputs if input_ids is None else input_ids
        images = visual_states.num_images
        if input_ids is None:
            input_ids = torch.full((images, 1), first, device=self.device)
            attention_mask = None
        input_ids, attention_mask = prefixes(input_ids, attention_mask, first, last, padding)
        if len(input_ids) == 1 < images:
            input_ids, attention_mask = (ids.repeat(images, 1) for ids in (input_ids, attention_mask))
        if input_ids.shape[1] >= self.max_caption_tokens:
            raise ValueError(
                f"The beginning of a caption has {input_ids.shape[1]} tokens, and a text at most "
                f"{self.max_caption_tokens}; shorten it."
            )
        return super().generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=generation_config,
            visual_states=visual_states,
            **kwargs,
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
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The words that the cache does not hold yet."""
        cache = past_key_values if cache is None else cache
        return {
            "input_ids": input_ids if cache is None else input_ids[:, cache.get_seq_length() :],
            "attention_mask": attention_mask,
            "visual_states": visual_states,
            "cache": cache,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
        }

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        # The default one has as many layers as the text encoder; this one grows.
        if generation_config.use_cache is not False and model_kwargs.get(CACHE_NAME) is None:
            model_kwargs[CACHE_NAME] = DynamicCache()

    def _prepare_generated_length(self, *args: Any, **kwargs: Any) -> Any:
        generation_config = super()._prepare_generated_length(*args, **kwargs)
        generation_config.max_length = min(generation_config.max_length, self.max_caption_tokens)
        return generation_config

    def _special_tokens(self, generation_config: Any, kwargs: dict[str, Any]) -> tuple[int, set[int], int]:
        """Beginning, ends and padding of captions, as the call, its or the model's generation config say."""
        configs = (
            [self.generation_config] if generation_config is None else [generation_config, self.generation_config]
        )
        found = {}
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            values = [kwargs.get(name), *(getattr(config, name, None) for config in configs)]
            found[name] = next((value for value in values if value is not None), None)
        if found["bos_token_id"] is None or found["eos_token_id"] is None:
            raise ValueError(
                "How captions begin and end is not known: `generation_config` has no `bos_token_id` or "
                "`eos_token_id`. Call `model.set_special_tokens(tokenizer)` once; they are saved with the model."
            )
        last = found["eos_token_id"]
        last = {last} if isinstance(last, int) else set(last)
        padding = found["pad_token_id"]
        return found["bos_token_id"], last, min(last) if padding is None else padding


__all__ = ["GLIPv2CaptioningOutput", "GLIPv2ForConditionalGeneration", "GLIPv2VisualStates"]
