"""
Deep fusion of tokens and locations: bidirectional attention, and the text layer that follows it.

From "Grounded Language-Image Pre-training" (Li et al., CVPR 2022), section 3.2, equations 4 to 6.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ..configuration_glipv2 import GLIPv2Config
from .half_precision import avoid_float16
from .input_checks import additive_mask

# The original bounds its scores and activations so that half precision survives.
BOUND = 50000.0
# Locations whose scores are computed at a time on the CPU: they should stay in the cache until they are used.
LOCATIONS_PER_CHUNK = 512


def is_plain_linear(module: nn.Module) -> bool:
    """
    Whether a layer is nothing but a matrix product, so that its weight may be used in place of calling it. Adapters,
    quantisation, offloading and hooks replace or wrap the layer, its `forward` or its weight.
    """
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and type(module.weight) in (nn.Parameter, torch.Tensor)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


class GLIPv2BiAttention(nn.Module):
    """
    Attention of every location to every token and of every token to every location, over one matrix of scores.

    With few tokens the projections of the locations are absorbed into the tokens: per head h,

        scores_h = q k_h^T = v (W_q,h^T k_h^T) + b_q,h k_h^T
        vision   = sum_h softmax_tokens(scores_h) (value_h W_out,h^T) + b_out
        text_h   = (softmax_locations(scores_h)^T v) W_value,h^T + b_value,h

    so that nothing as wide as `fusion_embed_dim` is ever computed per location. Three forms give the same numbers:

    - a head at a time, absorbed or direct, whichever needs fewer multiplications: what `attn_implementation="eager"`
      always does, and the only form that can return probabilities;
    - absorbed, over chunks of locations that stay in the cache, all heads at once: on the CPU, when nothing is
      differentiated or compiled;
    - direct, with `F.scaled_dot_product_attention` in both directions: on other devices and when compiled. Without
      the bound on scores, which it does not need, as it adds in float32.

    Absorbing reads the weights of three projections. Where one of them is more than a linear layer (an adapter, a
    quantised or offloaded layer), the direct forms are used, which only call it.

    Args:
        config: sizes and options.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.config = config
        vision_dim, text_dim = config.d_model, config.text_config.hidden_size
        embed_dim = config.fusion_embed_dim
        self.vision_dim, self.embed_dim = vision_dim, embed_dim
        self.num_heads = config.fusion_num_heads
        self.head_dim = embed_dim // self.num_heads
        self.dropout = config.fusion_dropout
        self.vision_norm = nn.LayerNorm(vision_dim, eps=config.layer_norm_eps)
        self.text_norm = nn.LayerNorm(text_dim, eps=config.layer_norm_eps)
        self.vision_query = nn.Linear(vision_dim, embed_dim)
        self.text_key = nn.Linear(text_dim, embed_dim)
        self.vision_value = nn.Linear(vision_dim, embed_dim)
        self.text_value = nn.Linear(text_dim, embed_dim)
        self.vision_out = nn.Linear(embed_dim, vision_dim)
        self.text_out = nn.Linear(embed_dim, text_dim)
        self.vision_gamma = nn.Parameter(torch.full((vision_dim,), 1 / config.num_fusion_layers))
        self.text_gamma = nn.Parameter(torch.full((text_dim,), 1 / config.num_fusion_layers))

    def forward(
        self,
        vision: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        vision_sees_text: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """
        Args:
            vision: `(batch, locations, d_model)`, all levels, P3 first.
            text: `(batch, tokens, text_dim)`.
            text_mask: boolean `(batch, tokens)`, `False` at tokens that no location may attend to; or what is added to
                their scores, from `additive_mask`.
            output_attentions: also return the probabilities.
            vision_sees_text: `False` keeps the locations independent of the tokens (captioning); the tokens still
                attend to the locations.

        Returns:
            The new vision and text in the shapes of the old, and `None` or the probabilities: what each location
            attends to, `(batch, heads, locations, tokens)`, and what each token does, `(batch, heads, tokens,
            locations)`.
        """
        return self.attend(self.normalize_vision(vision), text, text_mask, output_attentions, vision_sees_text)

    def normalize_vision(self, vision: torch.Tensor) -> torch.Tensor:
        """`vision_norm`; of maps that float16 cannot hold in float32, and then in float16."""
        dtype = self.vision_norm.weight.dtype
        if dtype == torch.float16 != vision.dtype:
            return avoid_float16(self.vision_norm, vision).to(dtype)
        return self.vision_norm(vision)

    def attend(
        self,
        vision: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        vision_sees_text: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """As `forward`, for a `vision` that is normalised already, as that of many steps of a caption is."""
        text = self.text_norm(text)
        inputs = (vision, text, text_mask, vision_sees_text)
        attentions = None
        if output_attentions or self.config._attn_implementation == "eager":
            vision_update, text_update, attentions = self.attend_by_head(*inputs, output_attentions)
        elif vision.device.type != "cpu" or torch.compiler.is_compiling():
            vision_update, text_update = self.attend_by_sdpa(*inputs)
        elif torch.is_grad_enabled() or self.training:
            vision_update, text_update, _ = self.attend_by_head(*inputs)
        elif self.can_absorb():
            vision_update, text_update = self.attend_by_chunk(*inputs)
        else:
            vision_update, text_update = self.attend_by_sdpa(*inputs)
        # The residual is the normalised tensor, in the original too.
        if vision_sees_text:
            vision = torch.addcmul(vision, self.vision_gamma, vision_update)
        text = torch.addcmul(text, self.text_gamma, self.text_out(text_update))
        return vision, text, attentions

    def can_absorb(self) -> bool:
        """Whether the projections of the locations are plain linear layers, whose weights may be used directly."""
        return all(is_plain_linear(module) for module in (self.vision_query, self.vision_value, self.vision_out))

    def absorbs(self, num_tokens: int) -> bool:
        """Whether the absorbed form can be used, and needs fewer multiplications for texts of `num_tokens` tokens."""
        is_cheaper = self.num_heads * self.vision_dim * num_tokens <= self.embed_dim * (self.vision_dim + num_tokens)
        return is_cheaper and self.can_absorb()

    def attend_by_head(
        self,
        vision: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        vision_sees_text: bool = True,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor | None, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """
        Args:
            vision, text: normalised, the rest as in `forward`.

        Returns:
            The update of vision (`None` unless `vision_sees_text`), the update of text before its output projection,
            and `None` or the probabilities.
        """
        keys, values = self._scaled_keys(text), self._split_heads(self.text_value(text))
        absorbed = self.absorbs(text.shape[1])
        if absorbed:
            query_weight, query_bias, value_weight, value_bias, out_weight, out_bias = self._split_weights()
        else:
            queries = self._split_heads(self.vision_query(vision))
            vision_values = self._split_heads(self.vision_value(vision))

        def head_scores(head: int) -> torch.Tensor:
            key = keys[:, head]
            if absorbed:
                scores = vision @ (key @ query_weight[head]).transpose(1, 2) + (key @ query_bias[head])[:, None, :]
            else:
                scores = queries[:, head] @ key.transpose(1, 2)
            return at_least_float32(scores).clamp(-BOUND, BOUND)

        attentions = None
        if output_attentions:
            scores = torch.stack([head_scores(head) for head in range(self.num_heads)], dim=1)
            mask = None if text_mask is None else text_mask[:, None]
            # The updates are made of these very tensors, so that gradients can be asked of them.
            attentions = masked_softmax(scores, mask, dim=-1), scores.transpose(2, 3).softmax(-1)
        vision_update, attended_values, text_updates = None, [], []
        # One head at a time: the scores of all heads would take gigabytes.
        for head in range(self.num_heads):
            if attentions is None:
                scores = head_scores(head)
                to_text = masked_softmax(scores, text_mask, dim=-1) if vision_sees_text else None
                to_vision = scores.transpose(1, 2).softmax(-1)
            else:
                to_text, to_vision = (probabilities[:, head] for probabilities in attentions)
            if vision_sees_text:
                probabilities, value = self._drop(to_text).to(values.dtype), values[:, head]
                if absorbed:
                    update = probabilities @ F.linear(value, out_weight[:, head])
                    vision_update = update + out_bias if vision_update is None else vision_update + update
                else:
                    attended_values.append(probabilities @ value)
            probabilities = self._drop(to_vision).to(vision.dtype)
            if absorbed:
                # Dropout leaves sums other than 1, and the bias is weighted by them.
                bias = probabilities.sum(-1, keepdim=True) * value_bias[head]
                text_updates.append(F.linear(probabilities @ vision, value_weight[head]) + bias)
            else:
                text_updates.append(probabilities @ vision_values[:, head])
        if attended_values:
            vision_update = self.vision_out(torch.cat(attended_values, dim=-1))
        return vision_update, torch.cat(text_updates, dim=-1), attentions

    def attend_by_chunk(
        self,
        vision: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        vision_sees_text: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """As `attend_by_head`, absorbed and in float32 inside; no gradients, no dropout."""
        keys, values = self._scaled_keys(text), self._split_heads(self.text_value(text))
        query_weight, query_bias, value_weight, value_bias, out_weight, out_bias = self._split_weights()
        # All heads side by side: (batch, heads * tokens, d_model), and one bias for each.
        absorbed_keys = at_least_float32(keys @ query_weight).flatten(1, 2)
        biases = at_least_float32(keys @ query_bias.unsqueeze(-1)).flatten(1)
        absorbed_values = at_least_float32(values @ out_weight.permute(1, 2, 0)).flatten(1, 2)
        updates, sums = [], []
        for image in range(vision.shape[0]):
            # Autocast would mix half precision into the running sums.
            with torch.autocast(vision.device.type, enabled=False):
                update, text_sums = attend_in_chunks(
                    vision[image],
                    absorbed_keys[image],
                    biases[image],
                    absorbed_values[image] if vision_sees_text else None,
                    None if text_mask is None else text_mask[image],
                    self.num_heads,
                )
            updates.append(None if update is None else update.add_(out_bias))
            sums.append(text_sums)
        text_update = torch.stack(sums).unflatten(1, (self.num_heads, -1)).to(text.dtype) @ value_weight.mT
        text_update = (text_update + value_bias.unsqueeze(1)).transpose(1, 2).flatten(2)
        return (torch.stack(updates) if vision_sees_text else None), text_update

    def attend_by_sdpa(
        self,
        vision: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        vision_sees_text: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """As `attend_by_head`, direct."""
        dropout = self.dropout if self.training else 0.0
        query, key = self._split_heads(self.vision_query(vision)), self._split_heads(self.text_key(text))
        value, update = self._split_heads(self.vision_value(vision)), None
        if vision_sees_text:
            mask = None if text_mask is None else text_mask[:, None, None, :]
            update = F.scaled_dot_product_attention(
                query, key, self._split_heads(self.text_value(text)), attn_mask=mask, dropout_p=dropout
            )
            update = self.vision_out(update.transpose(1, 2).flatten(2))
        text_update = F.scaled_dot_product_attention(key, query, value, dropout_p=dropout)
        return update, text_update.transpose(1, 2).flatten(2)

    def _scaled_keys(self, text: torch.Tensor) -> torch.Tensor:
        """Keys of the tokens, `(batch, heads, tokens, head_dim)`, divided by the root of `head_dim`."""
        return self._split_heads(self.text_key(text) * self.head_dim**-0.5)

    def _split_weights(self) -> tuple[torch.Tensor, ...]:
        """
        By head the weight and bias of queries and of values, `(heads, head_dim, d_model)` and `(heads, head_dim)`,
        and the weight of the output, `(d_model, heads, head_dim)`, with its bias, `(d_model,)`.
        """
        split = (self.num_heads, self.head_dim)
        return (
            self.vision_query.weight.unflatten(0, split),
            self.vision_query.bias.unflatten(0, split),
            self.vision_value.weight.unflatten(0, split),
            self.vision_value.bias.unflatten(0, split),
            self.vision_out.weight.unflatten(1, split),
            self.vision_out.bias,
        )

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _drop(self, probabilities: torch.Tensor) -> torch.Tensor:
        return F.dropout(probabilities, self.dropout, self.training)


def attend_in_chunks(
    vision: torch.Tensor,
    keys: torch.Tensor,
    biases: torch.Tensor,
    values: torch.Tensor | None,
    text_mask: torch.Tensor | None,
    num_heads: int,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """
    Both directions of one image's attention over chunks of its locations, so that a score is made, used twice and
    forgotten while it is in the cache. The softmax over all locations is kept as a running maximum, sum and weighted
    sum.

    Args:
        vision: `(locations, d_model)`.
        keys, values: absorbed projections of the tokens, at least float32 `(heads * tokens, d_model)`.
        biases: of the scores, at least float32 `(heads * tokens,)`.
        text_mask: `(tokens,)`, boolean or added to scores.
        num_heads: heads in `keys`.

    Returns:
        `(locations, d_model)`, values by the softmax over tokens, or `None` without `values`; and `(heads * tokens,
        d_model)`, float32, locations by the softmax over locations.
    """
    updates = None if values is None else torch.empty_like(vision)
    maxima = torch.full_like(biases, -BOUND)
    totals = torch.zeros_like(biases)
    sums = torch.zeros_like(keys)
    for start in range(0, vision.shape[0], LOCATIONS_PER_CHUNK):
        chunk = slice(start, start + LOCATIONS_PER_CHUNK)
        locations = vision[chunk].to(keys.dtype)
        scores = torch.addmm(biases, locations, keys.T).clamp_(-BOUND, BOUND)
        if updates is not None:
            probabilities = masked_softmax(scores.unflatten(1, (num_heads, -1)), text_mask, dim=-1)
            updates[chunk] = probabilities.flatten(1) @ values
        new_maxima = torch.maximum(maxima, scores.amax(0))
        weights = scores.sub_(new_maxima).exp_()
        shrink = (maxima - new_maxima).exp_()
        totals.mul_(shrink).add_(weights.sum(0))
        sums.mul_(shrink[:, None]).addmm_(weights.T, locations)
        maxima = new_maxima
    return updates, sums.div_(totals[:, None])


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; wider types stay."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """
    Softmax of `(..., queries, keys)` that leaves out the keys where `mask`, `(..., keys)`, is `False` or lowest.
    """
    if mask is not None:
        mask = mask if mask.is_floating_point() else additive_mask(mask, scores.dtype)
        scores = scores + mask.unsqueeze(-2)
    return scores.softmax(dim)


class GLIPv2TextSelfAttention(nn.Module):
    """Self-attention of a BERT layer."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        dim = config.text_config.hidden_size
        self.num_heads = config.text_config.num_attention_heads
        self.dropout = config.text_config.attention_probs_dropout_prob
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(
        self, text: torch.Tensor, mask: torch.Tensor | None, past: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """As `GLIPv2FusedTextLayer.forward`, of the attention alone; `past` may be empty."""
        query, key, value = (
            projection(text).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        if past:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).flatten(2)), (key, value)


class GLIPv2FusedTextLayer(nn.Module):
    """
    The BERT layer between two fusions: post-norm, exact GELU, activations bounded.

    Args:
        config: sizes and options.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        dim, intermediate_dim = config.text_config.hidden_size, config.text_config.intermediate_size
        # Fixed by the released weights, whatever the text encoder uses.
        eps = 1e-12
        self.dropout = config.text_config.hidden_dropout_prob
        self.attention = GLIPv2TextSelfAttention(config)
        self.attention_norm = nn.LayerNorm(dim, eps=eps)
        self.intermediate = nn.Linear(dim, intermediate_dim)
        self.output = nn.Linear(intermediate_dim, dim)
        self.output_norm = nn.LayerNorm(dim, eps=eps)

    def forward(
        self, text: torch.Tensor, mask: torch.Tensor | None = None, past: tuple[torch.Tensor, ...] | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """
        Args:
            text: `(batch, tokens, text_dim)`.
            mask: `(batch, 1, 1, keys)` or `(batch, 1, tokens, keys)`, boolean and `False` at what may not be attended
                to, or added to scores; keys are those of `past` and then the tokens. `None` lets every token attend
                to every key.
            past: for decoding step by step. Keys and values of earlier tokens, each `(batch, heads, earlier,
                head_dim)`, or an empty tuple at the first step. `None` when nothing need be kept.

        Returns:
            The new text, `(batch, tokens, text_dim)`; where `past` is given also the keys and values up to now,
            which the next step takes as `past`.
        """
        attended, present = self.attention(text, mask, () if past is None else past)
        text = self.attention_norm(text + self._drop(attended))
        # What is bounded stays so in the activation.
        hidden = F.gelu(self.intermediate(text).clamp(-BOUND, BOUND))
        output = self._drop(self.output(hidden)).clamp(-BOUND, BOUND)
        text = self.output_norm(text + output).clamp(-BOUND, BOUND)
        return text if past is None else (text, present)

    def _drop(self, states: torch.Tensor) -> torch.Tensor:
        return F.dropout(states, self.dropout, self.training)


def init_bi_attention(module: GLIPv2BiAttention, config: GLIPv2Config):
    """
    Sets the initial weights of a fusion as the original does; weights already loaded are left alone.

    Args:
        module: the fusion.
        config: its configuration; each update starts at 1 / `num_fusion_layers` of its strength.
    """
    for linear in module.children():
        if isinstance(linear, nn.Linear):
            init.xavier_uniform_(linear.weight)
            init.zeros_(linear.bias)
    for norm in (module.vision_norm, module.text_norm):
        init.ones_(norm.weight)
        init.zeros_(norm.bias)
    for gamma in (module.vision_gamma, module.text_gamma):
        init.constant_(gamma, 1 / config.num_fusion_layers)
