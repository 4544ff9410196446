"""A processor of a few lines and a WordPiece tokenizer made in the test, for what the collator does around them."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [".", ",", "?", "a", "the", "left", "right", "of", "person", "dog", "traffic", "light", "umbrella"]
WORDS += ["teddy", "bear", "dining", "table", "zebra", "cat", "red", "wine", "glass", "black", "bishop", "man", "next"]


def tiny_tokenizer(max_length: int = 64) -> PreTrainedTokenizerFast:
    """BERT-like, lower case, of the words above and single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = SPECIAL + WORDS + [x for x in letters if x != "a"] + [f"##{x}" for x in letters]
    tokenizer = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", pieces.index("[CLS]")), ("[SEP]", pieces.index("[SEP]"))]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        **{f"{name}_token": token for name, token in names.items()},
    )


class StubProcessor:
    """Records what it was given; makes images of a common size."""

    def __init__(self, max_length: int = 64):
        self.tokenizer = tiny_tokenizer(max_length)
        self.max_tokens = max_length
        self.calls = []

    def __call__(self, images, text, annotations, return_tensors, truncation, max_length, **kwargs):
        self.calls.append({"images": images, "text": text, "annotations": annotations, **kwargs})
        tokens = self.tokenizer(text, padding=True, truncation=truncation, max_length=max_length, return_tensors="pt")
        pixels = [torch.from_numpy(np.asarray(image.resize((32, 32)), dtype=np.float32)) for image in images]
        return {
            "pixel_values": torch.stack(pixels).permute(0, 3, 1, 2),
            "pixel_mask": torch.ones(len(images), 32, 32, dtype=torch.long),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "labels": [dict(annotation) for annotation in annotations],
        }
