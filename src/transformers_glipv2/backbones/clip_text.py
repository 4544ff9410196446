"""
CLIP's text tower as a text encoder of grounding: every token sees every other, and texts are as long as prompts.

As the text encoder that the original's code calls "clip". Layers and weights are those of transformers' CLIP, so its
checkpoints load; those of 77 positions need `max_position_embeddings=77` (and `max_text_length=77`).
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, CLIPTextConfig, CLIPTextModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs


@strict
class GLIPv2CLIPTextConfig(CLIPTextConfig):
    r"""
    Configuration of `GLIPv2CLIPTextModel`: that of CLIP's text tower, and what the fused text layers read.

    Args:
        max_position_embeddings (`int`, *optional*, defaults to 256):
            Tokens of the longest text.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1), attention_probs_dropout_prob (`float`, *optional*,
            defaults to 0.1):
            Dropout of the text layers between two fusions. The tower itself has `attention_dropout`.
    """

    model_type = "glipv2_clip_text"

    max_position_embeddings: int = 256
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1


class GLIPv2CLIPTextModel(CLIPTextModel):
    """
    CLIP's text tower without its causal mask and without pooling.

    Args:
        config: sizes and options.
        add_pooling_layer: there is none; `True` is refused.

    Raises:
        ValueError: when a pooling layer is asked for.
    """

    config: GLIPv2CLIPTextConfig
    config_class = GLIPv2CLIPTextConfig

    def __init__(self, config: GLIPv2CLIPTextConfig, add_pooling_layer: bool = False):
        if add_pooling_layer:
            raise ValueError("GLIPv2CLIPTextModel has no pooling layer; leave `add_pooling_layer` at False.")
        super().__init__(config)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Args:
            input_ids: `(batch, tokens)`.
            attention_mask: `(batch, tokens)`, 1 for tokens and 0 for padding; or `(batch, 1, tokens, keys)` as the
                attention takes it.
            position_ids: `(batch, tokens)`; `None` counts from 0.
            inputs_embeds: `(batch, tokens, hidden_size)` in place of `input_ids`.
            token_type_ids: not used; CLIP has no token types.
            cache: keys and values of earlier tokens, for generation step by step; those of these tokens are added.
                `past_key_values` is its name in older versions of transformers.

        Raises:
            ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        embeddings = self.embeddings(input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embeddings, attention_mask=attention_mask)
        cache = past_key_values if cache is None else cache
        if cache is None:
            hidden_states = self.encoder(inputs_embeds=embeddings, attention_mask=mask, **kwargs).last_hidden_state
        else:
            hidden_states = self._step(embeddings, mask, cache)
        return BaseModelOutput(last_hidden_state=self.final_layer_norm(hidden_states))

    def _step(self, hidden_states: torch.Tensor, mask: torch.Tensor | None, cache: Cache) -> torch.Tensor:
        """The layers over cached keys and values, which CLIP's own do not know; without dropout."""
        for index, layer in enumerate(self.encoder.layers):
            attention, normed = layer.self_attn, layer.layer_norm1(hidden_states)
            query, key, value = (
                projection(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            key, value = cache.update(key, value, index)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            hidden_states = hidden_states + attention.out_proj(attended.transpose(1, 2).flatten(2))
            hidden_states = hidden_states + layer.mlp(layer.layer_norm2(hidden_states))
        return hidden_states


AutoConfig.register("glipv2_clip_text", GLIPv2CLIPTextConfig, exist_ok=True)
AutoModel.register(GLIPv2CLIPTextConfig, GLIPv2CLIPTextModel, exist_ok=True)

__all__ = ["GLIPv2CLIPTextConfig", "GLIPv2CLIPTextModel"]
