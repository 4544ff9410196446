"""Masked language modelling: which tokens are masked."""

import torch


def mask_tokens(
    input_ids: torch.Tensor,
    maskable: torch.Tensor,
    mask_token_id: int,
    vocab_size: int,
    generator: torch.Generator,
    probability: float = 0.15,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mask some tokens as BERT does: of the chosen ones 80 % become the mask token, 10 % a random one, 10 % stay.

    Args:
        input_ids (`torch.Tensor` of shape `(tokens,)`): one text.
        maskable (`torch.Tensor` of shape `(tokens,)`): bool, see `greenlight_map`.
        mask_token_id (`int`), vocab_size (`int`): the tokenizer's.
        generator (`torch.Generator`): the only source of chance.
        probability (`float`, *optional*, defaults to 0.15): of each maskable token to be chosen.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the ids with tokens masked, and the targets: the original id where a token
        was chosen, -100 elsewhere.
    """
    chosen = (torch.rand(input_ids.shape, generator=generator) < probability) & maskable
    fate = torch.rand(input_ids.shape, generator=generator)
    random_ids = torch.randint(vocab_size, input_ids.shape, generator=generator)
    masked = torch.where(chosen & (fate < 0.8), torch.full_like(input_ids, mask_token_id), input_ids)
    masked = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), random_ids.to(input_ids), masked)
    return masked, torch.where(chosen, input_ids, torch.full_like(input_ids, -100))
