"""
Graphs of a fixed size for other runtimes: one image, labels that are encoded once, masks of chosen boxes.

`conversion/onnx_folder.py` exports them to ONNX and shows how to use the files.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import roi_align

from ..boxes import denormalize_boxes
from ..layers.mask_head import SAMPLING_RATIO, GLIPv2MaskHead, mean_weights, roi_levels
from ..modeling_glipv2 import GLIPv2ForObjectDetection
from ..processing_glipv2 import GLIPv2Processor
from .detector import encode_labels, max_prompt_tokens


@dataclass
class Vocabulary:
    """
    Labels as the graphs take them.

    Attributes:
        text_features: `(1, tokens, text_dim)`.
        attention_mask: `(1, tokens)` long, 1 for tokens and 0 for padding.
        label_map: `(labels, tokens)` float, above 0 at the tokens of each label; nothing for labels that are not used.
    """

    text_features: Tensor
    attention_mask: Tensor
    label_map: Tensor


class DetectorGraph(nn.Module):
    """
    One image of a fixed size, without what training and varying sizes need.

    Raises:
        ValueError: for a model that cuts padding away, which no graph of a fixed size can.
    """

    def __init__(self, model: GLIPv2ForObjectDetection):
        super().__init__()
        if model.config.mask_padded_pixels:
            raise ValueError(
                "A graph of a fixed size cannot cut padding away; load the model with `mask_padded_pixels=False`."
            )
        self.model = model

    def forward(
        self, pixel_values: Tensor, text_features: Tensor, attention_mask: Tensor, label_map: Tensor
    ) -> tuple[Tensor, ...]:
        """
        Returns:
            scores `(anchors, labels)` and centerness `(anchors,)`, both after the sigmoid, boxes `(anchors, 4)` xyxy
            in pixels of the input, fused tokens `(1, tokens, text_dim)`, and the maps that masks are pooled from.
        """
        output = self.model(pixel_values=pixel_values, text_features=text_features, attention_mask=attention_mask)
        scores = output.logits[0].sigmoid() @ mean_weights(label_map).T
        boxes = denormalize_boxes(output.pred_boxes[0], output.image_sizes[0])
        before = self.model.config.mask_feature_source == "before_fusion"
        maps = output.feature_maps if before else output.fused_feature_maps
        return scores, output.centerness[0].sigmoid(), boxes, output.fused_text, *maps


class MaskGraph(nn.Module):
    """Masks of a fixed number of boxes."""

    def __init__(self, head: GLIPv2MaskHead):
        super().__init__()
        self.head = head

    def forward(self, boxes: Tensor, words: Tensor, fused_text: Tensor, *maps: Tensor) -> Tensor:
        """
        Args:
            boxes: `(n, 4)` xyxy in pixels of the input.
            words: `(n, tokens)`, above 0 at the tokens of each box's label.
            fused_text, maps: from the detector's graph.

        Returns:
            `(n, side, side)`, logits.
        """
        levels = roi_levels(boxes, self.head.strides)
        # From every level, then the right one: which boxes a level has must not change the shapes in a graph.
        pooled = torch.stack(
            [
                roi_align(level, [boxes], self.head.pool_size, 1 / stride, SAMPLING_RATIO, aligned=False)
                for level, stride in zip(maps, self.head.strides, strict=True)
            ]
        )
        chosen = F.one_hot(levels, len(maps)).T.to(pooled.dtype)
        pooled = (pooled * chosen[:, :, None, None, None]).sum(0)
        features, bias = self.head.project_tokens(fused_text)
        weights = mean_weights(words)
        logits = torch.einsum("rchw,rc->rhw", self.head.pixels(pooled), weights @ features[0])
        return logits + (weights @ bias[0])[:, None, None]


def encode_vocabulary(
    model: GLIPv2ForObjectDetection,
    processor: GLIPv2Processor,
    labels: list[str],
    max_labels: int | None = None,
    max_tokens: int | None = None,
) -> Vocabulary:
    """
    Labels of one prompt, padded to what a graph takes.

    Raises:
        ValueError: for more labels or tokens than fit.
    """
    tokenizer = processor.tokenizer
    prompts = encode_labels(labels, tokenizer, min(processor.max_tokens, max_prompt_tokens(model, tokenizer)))
    tokens = max_tokens or len(prompts[0].input_ids)
    if len(prompts) > 1 or len(prompts[0].input_ids) > tokens:
        raise ValueError(f"The {len(labels)} labels have more tokens than the {tokens} of a prompt; export fewer.")
    if len(labels) > (max_labels or len(labels)):
        raise ValueError(f"There are {len(labels)} labels, more than the {max_labels} that the graph takes.")
    padding = tokens - len(prompts[0].input_ids)
    input_ids = torch.tensor([prompts[0].input_ids + [tokenizer.pad_token_id] * padding])
    attention_mask = torch.tensor([[1] * (tokens - padding) + [0] * padding])
    label_map = torch.zeros(max_labels or len(labels), tokens)
    label_map[: len(labels), : tokens - padding] = prompts[0].label_map.float()
    features = model.get_text_features(input_ids, attention_mask, return_dict=True).last_hidden_state
    return Vocabulary(features, attention_mask, label_map)


def fit(processor: GLIPv2Processor, image: Image.Image, height: int, width: int) -> tuple[Tensor, float]:
    """The image as large as fits, padded to `(1, 3, height, width)`, and by how much it was scaled."""
    scale = min(height / image.height, width / image.width)
    size = {"height": max(int(image.height * scale), 1), "width": max(int(image.width * scale), 1)}
    inputs = processor.image_processor(
        image, size=size, pad_size={"height": height, "width": width}, return_tensors="pt"
    )
    return inputs["pixel_values"], scale


def in_image(boxes: Tensor, scale: float, image: Image.Image) -> Tensor:
    """Boxes `(n, 4)` in pixels of the input to pixels of the image, without what is in the padding."""
    return (boxes / scale).clamp(min=0).minimum(torch.tensor([image.width, image.height] * 2))


__all__ = ["DetectorGraph", "MaskGraph", "Vocabulary", "encode_vocabulary", "fit", "in_image"]
