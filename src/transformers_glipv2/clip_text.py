"""
CLIP's text tower as a text encoder of grounding: every word sees every other, and texts are as long as prompts.

From the text encoder that the original's code calls "clip". Layers and weights are those of transformers' CLIP, so its
checkpoints load; those of 77 positions need `max_position_embeddings=77` (and `max_text_length=77`).
"""

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, CLIPTextConfig, CLIPTextModel
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
        **kwargs,
    ) -> BaseModelOutput:
        """
        Args:
            input_ids: `(batch, tokens)`.
            attention_mask: `(batch, tokens)`, 1 for words and 0 for padding.
            position_ids: `(batch, tokens)`; `None` counts from 0.
            inputs_embeds: `(batch, tokens, hidden_size)` in place of `input_ids`.
            token_type_ids: not used; CLIP has no token types.

        Raises:
            ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        embeddings = self.embeddings(input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embeddings, attention_mask=attention_mask)
        hidden_states = self.encoder(inputs_embeds=embeddings, attention_mask=mask, **kwargs).last_hidden_state
        return BaseModelOutput(last_hidden_state=self.final_layer_norm(hidden_states))


AutoConfig.register("glipv2_clip_text", GLIPv2CLIPTextConfig, exist_ok=True)
AutoModel.register(GLIPv2CLIPTextConfig, GLIPv2CLIPTextModel, exist_ok=True)

__all__ = ["GLIPv2CLIPTextConfig", "GLIPv2CLIPTextModel"]
