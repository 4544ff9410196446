"""
The mask head: regions of the pyramid, pooled by RoIAlign, are compared with the tokens of their label pixel by pixel
(section 3.2 of the GLIPv2 paper).

    boxes -> `pool_regions` -> extractor (convolutions or hourglasses) -> 2x upsampling -> pixels times tokens

The classifier is the box head's, without its prior bias: the similarity of a pixel f and a token p is
f . Linear(p / 2) / exp(log_scale) + p . text_bias. A mask has the mean logit over the tokens of its label, which is
the dot product with the mean token, so no tensor over all tokens is ever made.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align
from transformers import initialization as init

from ..boxes import box_iou_inclusive, check_boxes_shape, to_device
from ..configuration_glipv2 import GLIPv2Config
from .half_precision import avoid_float16
from .input_checks import can_read

# A box of this side in pixels pools from the level of this stride, as in FPN; others from coarser or finer ones.
CANONICAL_SIDE, CANONICAL_STRIDE = 224, 16
# Samples of RoIAlign along each side of a cell.
SAMPLING_RATIO = 2
# Dilation of the middle convolution of the hourglasses' residual blocks.
HOURGLASS_DILATION = 3
# Regions that pass through the head at once at inference; bounds its memory at about 100 MB for 256 channels.
REGIONS_PER_CHUNK = 64
# Pixels of masks that are in floating point at once in training; bounds their memory at about 250 MB.
MASK_PIXELS_AT_ONCE = 1 << 26
# A predicted box learns the mask of the object that it overlaps by this much.
MATCH_IOU = 0.5
# Predicted boxes that learn the mask of one object, and regions of an image in one training step: objects are seen in
# the boxes that inference will find, at a bounded cost.
PREDICTED_BOXES_PER_OBJECT = 3
REGIONS_PER_IMAGE = 64


# Regions -------------------------------------------------------------------------------------------------------------


def roi_levels(boxes_xyxy: Tensor, strides: Sequence[int]) -> Tensor:
    """
    The level of the pyramid that each box is pooled from: floor(4 + log2(side / 224 + 1e-6)), stride 2^level.

    Args:
        boxes_xyxy: `(n, 4)` inclusive corners in pixels of the resized image; the side is the root of the area,
            which counts `+ 1` in width and height.
        strides: of the levels in pixels, each twice the one before.

    Returns:
        `(n,)` long, index into `strides`.
    """
    sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] + 1).clamp(min=0)
    finest = math.log2(CANONICAL_STRIDE) - math.log2(strides[0])
    levels = torch.floor(finest + torch.log2(sizes.prod(1).sqrt() / CANONICAL_SIDE + 1e-6))
    return levels.clamp(0, len(strides) - 1).long()


def pool_regions(
    feature_maps: Sequence[Tensor], boxes_xyxy: Sequence[Tensor], strides: Sequence[int], output_size: int
) -> Tensor:
    """
    RoIAlign of each box on the level that fits its size.

    Args:
        feature_maps: one `(batch, channels, H_l, W_l)` a level.
        boxes_xyxy: for each image `(n_i, 4)` corners in pixels of the resized image, on the device of the maps or on
            the CPU.
        strides: of the levels, in pixels.
        output_size: side of the pooled maps.

    Returns:
        `(sum of n_i, channels, output_size, output_size)`, image after image, in the finest map's dtype, or in float32
        where that is float16, which cannot hold the coarsest maps.
    """
    device, strides = feature_maps[0].device, list(strides)
    counts = torch.tensor([len(boxes) for boxes in boxes_xyxy])
    # Coordinates do not fit half precision.
    boxes = torch.cat([boxes.float() for boxes in boxes_xyxy])
    levels = roi_levels(boxes, strides)
    images = to_device(torch.repeat_interleave(counts, output_size=len(boxes)), device)
    rois = torch.cat([images[:, None].float(), to_device(boxes, device)], dim=1)
    dtype = torch.float32 if feature_maps[0].dtype == torch.float16 else feature_maps[0].dtype

    def pool(level: int, rois: Tensor) -> Tensor:
        pooled = roi_align(
            feature_maps[level].float(), rois, output_size, 1 / strides[level], SAMPLING_RATIO, aligned=False
        )
        return pooled.to(dtype)

    if can_read(levels):
        order = torch.argsort(levels, stable=True)
        sizes = levels.bincount(minlength=len(strides)).tolist()
        parts = rois[to_device(order, device)].split(sizes)
        return torch.cat([pool(level, part) for level, part in enumerate(parts)])[to_device(order.argsort(), device)]
    # From all levels: less work for a GPU than to wait for it to say which boxes belong where.
    pooled = pool(0, rois)
    for level in range(1, len(strides)):
        pooled = torch.where((levels == level)[:, None, None, None], pool(level, rois), pooled)
    return pooled


def mask_targets(masks: Tensor, boxes_xyxy: Tensor, owners: Tensor, image_size: Tensor, output_size: int) -> Tensor:
    """
    What the head learns inside each box: the mask's part there at the head's resolution.

    The original rasterises the polygon again inside the box; masks come here as pixels, so each cell takes the mean of
    the pixels that it covers and belongs to the mask when that is at least a half. The cells divide the box's pixels
    [x1, x2 + 1) x [y1, y2 + 1), which is where `paste_masks.py` puts masks.

    Args:
        masks: `(n, H, W)` bool or numbers in [0, 1], at whatever resolution, of the whole image, one an object; on the
            device of the boxes or on the CPU.
        boxes_xyxy: `(regions, 4)` inclusive corners in pixels of the resized image.
        owners: long `(regions,)`, the object of each box.
        image_size: `(2,)` height and width in pixels of the resized image.
        output_size: side of the targets.

    Returns:
        `(regions, output_size, output_size)` float, 0 or 1.
    """
    if len(boxes_xyxy) == 0:
        return boxes_xyxy.new_zeros((0, output_size, output_size), dtype=torch.float32)
    height, width = image_size.to(device=boxes_xyxy.device, dtype=torch.float64)
    scale = torch.stack((masks.shape[2] / width, masks.shape[1] / height)).to(boxes_xyxy.dtype).repeat(2)
    x1, y1, x2, y2 = boxes_xyxy.unbind(1)
    corners = (torch.stack((x1, y1, x2 + 1, y2 + 1), dim=1) * scale).float()
    masks = to_device(masks, boxes_xyxy.device)
    # A few at a time: hundreds of full masks in floating point would not fit beside a model.
    at_once = max(1, MASK_PIXELS_AT_ONCE // masks[0].numel())
    cells = corners.new_zeros(len(corners), output_size, output_size)
    for start in range(0, len(masks), at_once):
        some = masks[start : start + at_once, None].float()
        index = owners - start
        rois = torch.cat([index.clamp(0, len(some) - 1)[:, None].float(), corners], dim=1)
        is_own = (index >= 0) & (index < len(some))
        cells = torch.where(is_own[:, None, None], roi_align(some, rois, output_size, aligned=True)[:, 0], cells)
    return (cells >= 0.5).float()


def training_regions(
    gt_boxes: Tensor, pred_boxes: Tensor, scores: Tensor, limit: int = REGIONS_PER_IMAGE
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The boxes in which an image's masks are learned: the objects' own, and the best predicted ones that match them.

    Args:
        gt_boxes: `(n, 4)` boxes_xyxy of the objects.
        pred_boxes: `(anchors, 4)` boxes_xyxy of the detector.
        scores: `(anchors, n)`, the detector's score of each box for each object; the highest are taken.
        limit: regions at most; with more objects than that, some are chosen at random.

    Returns:
        `(regions, 4)` boxes_xyxy, `(regions,)` long, the object of each, and boolean `(regions,)`, `False` at
        fillers, which stand where fewer predicted boxes match than could be.
    """
    objects = torch.randperm(len(gt_boxes), device=gt_boxes.device)[:limit]
    is_region = torch.ones_like(objects, dtype=torch.bool)
    if len(objects) == 0 or len(pred_boxes) == 0:
        return gt_boxes[objects], objects, is_region
    overlap, best = box_iou_inclusive(pred_boxes, gt_boxes).max(dim=1)
    matched = (overlap >= MATCH_IOU)[:, None] & (best[:, None] == objects)
    # The ranking holds the first, then the second, ... box of every object, so a cut takes from all alike.
    ranks = torch.where(matched, scores[:, objects], -1.0)
    ranks, anchors = ranks.topk(min(PREDICTED_BOXES_PER_OBJECT, len(ranks)), dim=0)
    boxes = torch.cat([gt_boxes[objects], pred_boxes[anchors.flatten()]])
    owners = torch.cat([objects, objects.expand_as(anchors).flatten()])
    is_region = torch.cat([is_region, (ranks >= 0).flatten()])
    # Fillers last, so that the cut takes them first.
    kept = is_region.logical_not().to(torch.uint8).argsort(stable=True)[:limit]
    return boxes[kept], owners[kept], is_region[kept]


# Extractors ----------------------------------------------------------------------------------------------------------


def _conv3x3(in_channels: int, out_channels: int, dilation: int, groups: int | None) -> nn.Module:
    """A 3x3 convolution; with a number of groups, without bias and followed by group normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=groups is None)
    return conv if groups is None else nn.Sequential(conv, nn.GroupNorm(groups, out_channels))


class GLIPv2MaskResidual(nn.Module):
    """Three convolutions through half the channels, each after a ReLU, added to the input."""

    def __init__(self, channels: int, groups: int | None):
        super().__init__()
        self.conv1 = _conv3x3(channels, channels // 2, 1, groups)
        self.conv2 = _conv3x3(channels // 2, channels // 2, HOURGLASS_DILATION, groups)
        self.conv3 = _conv3x3(channels // 2, channels, 1, groups)

    def forward(self, regions: Tensor) -> Tensor:
        """`(regions, channels, side, side)` to the same shape."""
        hidden = self.conv1(F.relu(regions))
        hidden = self.conv2(F.relu(hidden))
        return regions + self.conv3(F.relu(hidden))


class GLIPv2MaskHourglass(nn.Module):
    """One scale of an hourglass: a residual block beside three at half the resolution, then ReLU."""

    def __init__(self, config: GLIPv2Config, in_channels: int):
        super().__init__()
        if in_channels != config.mask_dim:
            raise ValueError(
                f"Hourglasses keep their channels: `mask_dim`={config.mask_dim} must equal `d_model`={in_channels}."
            )
        groups = config.group_norm_groups
        # The released extractor normalises these two only.
        self.up1 = GLIPv2MaskResidual(in_channels, None)
        self.low1 = GLIPv2MaskResidual(in_channels, None)
        self.low2 = GLIPv2MaskResidual(in_channels, groups)
        self.low3 = GLIPv2MaskResidual(in_channels, groups)

    def forward(self, regions: Tensor) -> Tensor:
        """`(regions, mask_dim, side, side)` to the same shape."""
        low = self.low3(self.low2(self.low1(F.max_pool2d(regions, 2))))
        return F.relu(self.up1(regions) + F.interpolate(low, size=regions.shape[-2:], mode="nearest"))


class GLIPv2MaskConv(nn.Conv2d):
    """A 3x3 convolution and ReLU."""

    def __init__(self, config: GLIPv2Config, in_channels: int):
        super().__init__(in_channels, config.mask_dim, 3, padding=1)

    def forward(self, regions: Tensor) -> Tensor:
        """`(regions, in_channels, side, side)` to `(regions, mask_dim, side, side)`."""
        return F.relu(super().forward(regions))


# Head ----------------------------------------------------------------------------------------------------------------


class GLIPv2MaskHead(nn.Module):
    """Masks of regions that a label names; see the module's docstring."""

    def __init__(self, config: GLIPv2Config):
        super().__init__()
        self.strides = tuple(config.anchor_strides)
        self.pool_size = config.mask_pool_size
        block = {"fcn": GLIPv2MaskConv, "hourglass": GLIPv2MaskHourglass}[config.mask_extractor]
        widths = [config.d_model] + [config.mask_dim] * (config.mask_num_convs - 1)
        self.extractor = nn.Sequential(*(block(config, width) for width in widths))
        text_dim = config.text_config.hidden_size
        self.upsample = nn.ConvTranspose2d(config.mask_dim, config.mask_dim, 2, stride=2)
        self.token_projection = nn.Linear(text_dim, config.mask_dim)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.text_bias = nn.Parameter(torch.zeros(text_dim))

    @property
    def output_size(self) -> int:
        """Side of the masks that the head gives."""
        return 2 * self.pool_size

    def forward(
        self,
        feature_maps: Sequence[Tensor],
        boxes_xyxy: Sequence[Tensor],
        text: Tensor,
        positive_maps: Sequence[Tensor],
    ) -> Tensor:
        """
        Args:
            feature_maps: one `(batch, d_model, H_l, W_l)` a level, before or after fusion.
            boxes_xyxy: for each image `(n_i, 4)` corners in pixels of the resized image.
            text: fused tokens `(batch, tokens, text_dim)`.
            positive_maps: for each image `(n_i, tokens)`, above 0 at the tokens of each box's label.

        Returns:
            `(sum of n_i, 2 pool_size, 2 pool_size)`, the mean logit over the label's tokens; float32.
        """
        tokens, bias = self.project_tokens(text)
        weights = [mean_weights(to_device(positive_map, tokens.device)) for positive_map in positive_maps]
        labels = torch.cat([weight @ token.float() for weight, token in zip(weights, tokens, strict=True)])
        bias = torch.cat([weight @ one for weight, one in zip(weights, bias, strict=True)])
        pixels = self.pixels(pool_regions(feature_maps, boxes_xyxy, self.strides, self.pool_size))
        # Autocast would multiply in half precision.
        with torch.autocast(pixels.device.type, enabled=False):
            return torch.einsum("rchw,rc->rhw", pixels.float(), labels.float()) + bias[:, None, None].float()

    def pixels(self, pooled: Tensor) -> Tensor:
        """Pooled regions `(regions, d_model, side, side)` to pixel features `(regions, mask_dim, 2 side, 2 side)`."""
        return F.relu(avoid_float16(self.upsample, avoid_float16(self.extractor, pooled)))

    def project_tokens(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """
        Fused tokens `(batch, tokens, text_dim)` to what pixels are multiplied with `(batch, tokens, mask_dim)` and
        the bias of each token `(batch, tokens)` in float32.
        """
        text = F.normalize(text, dim=-1)
        return self.token_projection(text / 2) / self.log_scale.exp(), text.float() @ self.text_bias.float()


def mean_weights(positive_map: Tensor) -> Tensor:
    """A positive map `(n, tokens)`, above 0 at each label's tokens, as weights of a mean over them; float32."""
    is_positive = (positive_map > 0).float()
    return is_positive / is_positive.sum(1, keepdim=True).clamp(min=1)


def init_mask_head(head: GLIPv2MaskHead) -> None:
    """Sets the initial weights as the original does; weights already loaded are left alone."""
    for module in head.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
    init.zeros_(head.log_scale)
    init.zeros_(head.text_bias)


def mask_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, normalizer: Tensor | None = None
) -> Tensor:
    """
    Binary cross entropy, mean over the pixels of each region, weighted sum over regions; 0 without regions.

    Args:
        logits: `(regions, side, side)`, mean logits over the label's tokens.
        targets: `(regions, side, side)` in [0, 1].
        weights: `(regions,)`, `None` for 1 each.
        normalizer: what the sum is divided by, `None` for the number of regions.
    """
    if len(logits) == 0:
        return logits.sum()
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))
    weighted = losses if weights is None else losses * weights
    return weighted.sum() / (len(losses) if normalizer is None else normalizer)


def masked_objects(label: Mapping[str, Any] | None) -> Tensor:
    """
    Which objects of an image's labels have a mask to learn: one with a pixel, and a label with a token (boxes whose
    tokens were cut off with the end of the text cannot be learned).

    Returns:
        their indices, long `(n,)`, on the CPU; none where the labels have no masks.
    """
    if label is None or label.get("masks") is None:
        return torch.zeros(0, dtype=torch.long)
    has_mask = label["masks"].flatten(1).any(1).cpu() & (label["positive_map"] > 0).any(1).cpu()
    return has_mask.nonzero()[:, 0]


def count_masked_objects(labels: Sequence[Mapping[str, Any] | None]) -> int:
    """How many masks a batch is trained on; `training_regions` takes so many objects of an image at most."""
    return sum(min(len(masked_objects(label)), REGIONS_PER_IMAGE) for label in labels)


def check_regions(boxes: Sequence[Tensor], positive_maps: Sequence[Tensor], batch: int, tokens: int) -> None:
    """
    Raises:
        ValueError, TypeError: unless there are boxes and tokens for each image, and every box has a token (which is
            looked at on the CPU alone).
    """
    if not len(boxes) == len(positive_maps) == batch:
        raise ValueError(
            f"`boxes` has {len(boxes)} and `positive_maps` {len(positive_maps)} entries for {batch} images; pass "
            "one each."
        )
    for index, (image_boxes, positive_map) in enumerate(zip(boxes, positive_maps, strict=True)):
        check_boxes_shape(image_boxes, f"boxes[{index}]")
        if tuple(positive_map.shape) != (len(image_boxes), tokens):
            raise ValueError(
                f"`positive_maps[{index}]` has shape {tuple(positive_map.shape)}; expected "
                f"{(len(image_boxes), tokens)}, one row for each box and one column for each token."
            )
        if not can_read(positive_map):
            continue
        without = (~(positive_map > 0).any(1)).nonzero().flatten().tolist()
        if without:
            raise ValueError(
                f"`positive_maps[{index}]` has no token for the boxes {without[:8]}; give each box the tokens of its "
                "label (labels beyond the end of a text have none: split them over several prompts)."
            )
