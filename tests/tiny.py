"""Small models made in the test: seconds, offline."""

import torch

from transformers_glipv2 import GLIPv2Config


def tiny_config(**overrides) -> GLIPv2Config:
    """A GLIPv2 of a few hundred thousand parameters with every part of the real one."""
    fields = {
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": 12,
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 3, 4],
            "window_size": 4,
            "out_indices": [2, 3, 4],
            "drop_path_rate": 0.0,
        },
        "text_config": {
            "model_type": "bert",
            "vocab_size": 128,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "d_model": 32,
        "num_fusion_layers": 2,
        "fusion_embed_dim": 64,
        "fusion_num_heads": 4,
        "fusion_dropout": 0.0,
        "max_text_length": 64,
        "contrastive_dim": 16,
        "mask_dim": 32,
        "mask_num_convs": 2,
    }
    return GLIPv2Config(**{**fields, **overrides})


def tiny_inputs(batch: int = 2, height: int = 64, width: int = 96, tokens: int = 9, seed: int = 0) -> dict:
    """Inputs of a model of `tiny_config`: the last image and the last text of a batch are padded."""
    generator = torch.Generator().manual_seed(seed)
    pixel_mask = torch.ones(batch, height, width, dtype=torch.long)
    attention_mask = torch.ones(batch, tokens, dtype=torch.long)
    if batch > 1:
        pixel_mask[-1, height - 20 :] = 0
        pixel_mask[-1, :, width - 12 :] = 0
        attention_mask[-1, tokens - 3 :] = 0
    pixel_values = torch.randn(batch, 3, height, width, generator=generator) * pixel_mask[:, None]
    input_ids = torch.randint(5, 128, (batch, tokens), generator=generator) * attention_mask
    return {
        "pixel_values": pixel_values,
        "pixel_mask": pixel_mask,
        "input_ids": input_ids,
        "attention_mask": attention_mask,
    }
