"""
The losses of pre-training, as pure functions on tensors.

    L = L_loc + L_intra + L_inter + L_mlm                                     (equations 3 to 6 of the GLIPv2 paper)

- L_loc: `box_loss`, `centerness_loss` on the anchors that learn a box (`match_anchors`).
- L_intra: `token_loss` between S = O P^T and the tokens of each anchor's box.
- L_inter: `contrastive_loss` between regions and tokens of all images of the batch, on all processes.
- L_mlm: `masked_token_loss`.

Every loss is a sum divided by a normaliser that is passed in. With several processes the normaliser is the mean over
them (`mean_over_processes`), so that gradients averaged over processes equal those of one process on the whole batch.

No shape depends on a value on the device, so that a GPU is never waited for: what takes no part is masked, and what is
picked by value is picked by labels that are still on the CPU ([`OnHost`]).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .boxes import (
    assign_atss,
    centerness_targets,
    check_boxes_shape,
    check_boxes_xyxy,
    decode_boxes,
    denormalize_boxes,
    to_device,
)
from .distributed import gather, mean_over_processes, num_processes

# What the original adds to unions and enclosing areas.
GIOU_EPS = 1e-7
# What losses read of an image's labels; whatever else is there is left alone.
LABEL_KEYS = ("boxes", "positive_map", "class_ids", "masks", "prompt_class_ids", "prompt_map")


# Targets -------------------------------------------------------------------------------------------------------------


@dataclass
class OnHost:
    """
    Labels that stay on the CPU, where their values can be read without waiting for a GPU: `DistributedDataParallel`
    and FSDP move the tensors among the arguments of a model, but not what they do not know.

    Args:
        value: labels, as a list of dicts or a tensor.
    """

    value: Any


def unwrapped(labels: Any) -> Any:
    """Labels as they are, or out of their [`OnHost`]."""
    return labels.value if isinstance(labels, OnHost) else labels


@dataclass
class AnchorTargets:
    """
    What the anchors of a batch learn. The anchors that learn a box are called positives; they are among the pairs of a
    box and a candidate, whose number depends on no value.

    Args:
        is_labelled (boolean `torch.Tensor` of shape `(batch,)`): images whose boxes are known; the others (captions
            without boxes) take part in no loss on anchors.
        is_positive (boolean `torch.Tensor` of shape `(pairs,)`): whether the anchor of a pair learns its box; the
            other pairs take part in nothing.
        image, anchor (`torch.LongTensor` of shape `(pairs,)`): image and index of each anchor.
        anchors_xyxy (`torch.Tensor` of shape `(pairs, 4)`): these anchors, in pixels of the resized image.
        boxes_xyxy (`torch.Tensor` of shape `(pairs, 4)`): the box of each pair, in the same pixels.
        centerness (`torch.Tensor` of shape `(pairs,)`): the centerness that each learns, in [0, 1].
        tokens (boolean `torch.Tensor` of shape `(pairs, tokens)`): the box's tokens.
        classes (`torch.LongTensor` of shape `(pairs,)`): the box's class (`prompts.class_id`) or 0.
        pairs_of_images (`list[int]`): how many pairs each image has; they come image by image.
        num_positives, sum_centerness (`torch.Tensor` of shape `()`): number of positives, at least 1, and sum of
            their centerness, at least a tiny number; means over processes. What the losses are divided by.
    """

    is_labelled: Tensor
    is_positive: Tensor
    image: Tensor
    anchor: Tensor
    anchors_xyxy: Tensor
    boxes_xyxy: Tensor
    centerness: Tensor
    tokens: Tensor
    classes: Tensor
    pairs_of_images: list[int]
    num_positives: Tensor
    sum_centerness: Tensor


def check_labels(labels: Sequence[Mapping[str, Any] | None], batch: int, tokens: int) -> None:
    """
    Raises:
        ValueError, TypeError: when the labels do not fit a batch of `batch` images and texts of `tokens` tokens.
    """
    if len(labels) != batch:
        raise ValueError(f"`labels` has {len(labels)} entries for {batch} images; pass one (or None) each.")
    for index, label in enumerate(labels):
        if label is None:
            continue
        for name in LABEL_KEYS:
            value = label.get(name)
            if name in label and not isinstance(value, Tensor):
                raise TypeError(
                    f"`labels[{index}]['{name}']` must be a tensor, got {type(value).__name__}; leave out what is not "
                    "known. The processor makes labels from `annotations`."
                )
        missing = [name for name in ("boxes", "positive_map") if name not in label]
        if missing:
            raise ValueError(
                f"`labels[{index}]` lacks {' and '.join(missing)}; the processor makes them from `annotations`."
            )
        check_boxes_shape(label["boxes"], f"labels[{index}]['boxes']")
        expected = (len(label["boxes"]), tokens)
        if tuple(label["positive_map"].shape) != expected:
            raise ValueError(
                f"`labels[{index}]['positive_map']` has shape {tuple(label['positive_map'].shape)}; expected "
                f"{expected}, one row for each box and one column for each token."
            )
        _check_classes(label, "class_ids", expected[0], "boxes", index)
        if "prompt_map" in label:
            _check_classes(label, "prompt_class_ids", len(label["prompt_map"]), "rows of `prompt_map`", index)


def _check_classes(label: Mapping[str, Tensor], key: str, count: int, unit: str, index: int) -> None:
    ids = label.get(key)
    if ids is not None and (ids.shape != (count,) or ids.dtype != torch.long):
        raise ValueError(
            f"`labels[{index}]['{key}']` has shape {tuple(ids.shape)} and dtype {ids.dtype} for {count} {unit}; "
            "expected one int64 for each, see `prompts.class_id`."
        )


def check_boxes_of_images(boxes: Sequence[Tensor], images: Sequence[int]) -> None:
    """
    Raises ValueError, naming the image, the box and its values, unless normalised boxes are finite and not reversed.
    Boxes that are on a GPU already are left unread.

    Args:
        boxes: for each of `images` `(n, 4)` centre x, centre y, width, height.
        images: their indices.
    """
    together = torch.cat(list(boxes))
    if together.device.type != "cpu":
        return
    if bool((together.isfinite().all(-1) & (together[:, 2:] >= 0).all(-1)).all()):
        return
    for index, own in zip(images, boxes, strict=True):
        half = own[:, 2:] / 2
        check_boxes_xyxy(torch.cat([own[:, :2] - half, own[:, :2] + half], dim=1), f"labels[{index}]['boxes']")


def join_labels(
    labels: Sequence[Mapping[str, Any] | None], counts: Sequence[int], num_tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """
    The boxes of all images together, where the labels are.

    Args:
        labels, num_tokens: as of `match_anchors`.
        counts: boxes of each image.

    Returns:
        Of the n boxes: their images, long `(n,)`; the boxes as they are, `(n, 4)`; their tokens, boolean
        `(n, tokens)`; their classes, long `(n,)`, 0 where unknown. And of the images whether their boxes are known,
        boolean `(batch,)`.

    Raises:
        ValueError: for a box that is not finite or reversed.
    """
    known = [label for label in labels if label is not None]
    images = torch.arange(len(labels)).repeat_interleave(torch.tensor(counts))
    is_labelled = torch.tensor([label is not None for label in labels])
    if not known:
        empty = torch.zeros(0, dtype=torch.long)
        return images, torch.zeros(0, 4), torch.zeros(0, num_tokens, dtype=torch.bool), empty, is_labelled
    boxes = [label["boxes"] for label in known]
    check_boxes_of_images(boxes, is_labelled.nonzero()[:, 0].tolist())
    classes = [label.get("class_ids", label["boxes"].new_zeros(len(label["boxes"])).long()) for label in known]
    tokens = torch.cat([label["positive_map"] for label in known]) > 0
    return images, torch.cat(boxes), tokens, torch.cat(classes), is_labelled


def match_anchors(
    labels: Sequence[Mapping[str, Any] | None],
    anchors: Tensor,
    num_anchors_per_level: Sequence[int],
    image_sizes: Tensor,
    num_tokens: int,
    topk: int = 9,
) -> AnchorTargets:
    """
    Which anchors learn which boxes (ATSS), over a batch.

    Args:
        labels: an image's {"boxes" `(n, 4)` centre x, centre y, width, height in [0, 1], "positive_map"
            `(n, tokens)`, optionally "class_ids" `(n,)`}, or `None` where its boxes are not known. An image may have
            no boxes.
        anchors: `(anchors, 4)`, x1, y1, x2, y2 in pixels of the resized image.
        num_anchors_per_level: their sum is `anchors`.
        image_sizes: `(batch, 2)`, height and width in pixels of each un-padded image.
        num_tokens: columns of each positive map.
        topk: candidates of a level and box.

    Raises:
        ValueError, TypeError: when the labels do not fit.
    """
    check_labels(labels, len(image_sizes), num_tokens)
    device, num_images = anchors.device, len(image_sizes)
    counts = [0 if label is None else len(label["boxes"]) for label in labels]
    # Joined before they are moved: a GPU takes as long for one box as for all.
    box_image, boxes, tokens, classes, is_labelled = (
        to_device(part, device) for part in join_labels(labels, counts, num_tokens)
    )
    boxes_xyxy = denormalize_boxes(boxes[:, None], image_sizes[box_image])[:, 0]

    matched, candidates = assign_atss(anchors, num_anchors_per_level, boxes_xyxy, box_image, num_images, topk)
    box = torch.arange(len(boxes), device=device)[:, None].expand_as(candidates).flatten()
    image, anchor = box_image[box], candidates.flatten()
    is_positive = matched[image, anchor] == box
    centerness = centerness_targets(boxes_xyxy[box], anchors[anchor])
    num_positives, sum_centerness = mean_over_processes(
        torch.stack([is_positive.sum().to(centerness.dtype), (centerness * is_positive).sum()])
    )
    return AnchorTargets(
        is_labelled=is_labelled,
        is_positive=is_positive,
        image=image,
        anchor=anchor,
        anchors_xyxy=anchors[anchor],
        boxes_xyxy=boxes_xyxy[box],
        centerness=centerness,
        tokens=tokens[box],
        classes=classes[box],
        pairs_of_images=[count * candidates.shape[1] for count in counts],
        num_positives=num_positives.clamp(min=1),
        # Without any positive the box loss is 0 / tiny = 0, and its gradients are zeros.
        sum_centerness=sum_centerness.clamp(min=torch.finfo(sum_centerness.dtype).eps),
    )


# L_loc and L_intra ---------------------------------------------------------------------------------------------------


def box_loss(deltas: Tensor, anchors: Tensor, boxes_xyxy: Tensor, weights: Tensor, normalizer: Tensor) -> Tensor:
    """
    sum(w (1 - GIoU)) / normalizer.

    Args:
        deltas: `(pairs, 4)` predicted, coded against the anchors.
        anchors: `(pairs, 4)`, x1, y1, x2, y2 in pixels.
        boxes_xyxy: `(pairs, 4)`, the boxes to learn, in the same pixels.
        weights: `(pairs,)`, the centerness targets of positives and 0 elsewhere.
        normalizer: sum of the weights, mean over processes.
    """
    predicted = decode_boxes(deltas, anchors)
    # The original's areas have no + 1, so a box narrower than a pixel would be reversed.
    predicted = torch.cat([predicted[:, :2], torch.maximum(predicted[:, :2], predicted[:, 2:])], dim=1)
    return (giou_loss(predicted, boxes_xyxy.to(predicted)) * weights).sum() / normalizer


def giou_loss(one: Tensor, other: Tensor) -> Tensor:
    """
    1 - GIoU (Rezatofighi et al., CVPR 2019) of pairs of boxes `(n, 4)`, `(n,)`. As torchvision's
    `generalized_box_iou_loss`, which indexes by a mask.
    """
    overlap = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0).prod(1)
    enclosing = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(1)
    union = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - overlap
    return 1 - overlap / (union + GIOU_EPS) + (enclosing - union) / (enclosing + GIOU_EPS)


def centerness_loss(logits: Tensor, targets: Tensor, counted: Tensor, normalizer: Tensor) -> Tensor:
    """
    Binary cross entropy of centerness, summed and divided.

    Args:
        logits, targets: `(pairs,)`, predicted before the sigmoid, and to learn.
        counted: boolean `(pairs,)`; the others take no part.
        normalizer: anchors that learn a box, mean over processes.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * counted).sum() / normalizer


def token_loss(
    logits: Tensor,
    targets: AnchorTargets,
    attention_mask: Tensor | None,
    normalizer: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """
    Sigmoid focal loss (Lin et al., ICCV 2017) between anchors and the tokens they learn, summed and divided.

    Nearly every pair of an anchor and a token is negative, so the negative term is computed for all and exchanged
    where there is a token to learn; that takes half the memory of a matrix of targets.

    Args:
        logits: `(batch, anchors, tokens)` before the sigmoid.
        targets: the tokens that anchors learn; all other tokens of labelled images are negatives.
        attention_mask: `(batch, tokens)`, 0 at padding, which is left out; `None` when nothing is padded.
        normalizer: anchors that learn a box, mean over processes.
        alpha, gamma: of the focal loss.
    """
    counted = targets.is_labelled[:, None].expand(-1, logits.shape[2])
    if attention_mask is not None:
        counted = counted & attention_mask.bool()
    total = (_negative_focal(logits, alpha, gamma).sum(1) * counted).sum()
    learned = logits[targets.image, targets.anchor]
    is_learned = targets.tokens & counted[targets.image] & targets.is_positive[:, None]
    positive = alpha * (-learned).sigmoid() ** gamma * F.softplus(-learned)
    exchanged = (positive - _negative_focal(learned, alpha, gamma)) * is_learned
    return (total + exchanged.sum()) / normalizer


def _negative_focal(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    return (1 - alpha) * logits.sigmoid() ** gamma * F.softplus(logits)


def detection_losses(
    logits: Tensor,
    centerness: Tensor,
    box_deltas: Tensor,
    targets: AnchorTargets,
    attention_mask: Tensor | None,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> dict[str, Tensor]:
    """
    L_loc and L_intra of a batch, not yet weighted.

    Args:
        logits `(batch, anchors, tokens)`, centerness `(batch, anchors)`, box_deltas `(batch, anchors, 4)`: as
            `GLIPv2ObjectDetectionOutput` has them.
        targets: from `match_anchors`.
        attention_mask: `(batch, tokens)`.
        alpha, gamma: of the focal loss.

    Returns:
        loss_box, loss_centerness, loss_intra.
    """
    pairs = targets.image, targets.anchor
    return {
        "loss_box": box_loss(
            box_deltas[pairs],
            targets.anchors_xyxy,
            targets.boxes_xyxy,
            targets.centerness * targets.is_positive,
            targets.sum_centerness,
        ),
        "loss_centerness": centerness_loss(
            centerness[pairs], targets.centerness, targets.is_positive, targets.num_positives
        ),
        "loss_intra": token_loss(logits, targets, attention_mask, targets.num_positives, alpha, gamma),
    }


# L_inter -------------------------------------------------------------------------------------------------------------


def classes_of_tokens(labels: Sequence[Mapping[str, Any] | None], num_tokens: int, device: torch.device) -> Tensor:
    """
    The class that each token names.

    Args:
        labels: an image's {"prompt_class_ids" `(classes,)`: every class of its text, "prompt_map" `(classes,
            tokens)`}; where these are missing, its boxes' "class_ids" and "positive_map" are read. Texts that do not
            list classes (neither is there, or `None` for the image) propagate nothing.
        num_tokens: columns of the maps.
        device: of the result.

    Returns:
        long `(batch, tokens)`, from `prompts.class_id`, 0 where a token names no class.
    """
    return to_device(torch.stack([_classes_of_tokens(label or {}, num_tokens) for label in labels]), device)


def _classes_of_tokens(label: Mapping[str, Tensor], num_tokens: int) -> Tensor:
    ids, class_map = label.get("prompt_class_ids"), label.get("prompt_map")
    if ids is None:
        ids, class_map = label.get("class_ids"), label.get("positive_map")
    if ids is None or class_map is None or not len(ids):
        return torch.zeros(num_tokens, dtype=torch.long)
    # The last of the classes that a token names; 0 is none.
    number = torch.arange(1, len(ids) + 1, device=ids.device)
    return F.pad(ids, (1, 0))[(number[:, None] * (class_map > 0)).amax(0)].cpu()


def choose_regions(targets: AnchorTargets, batch: int, limit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    The positive anchors of each image that L_inter contrasts: the most central ones where there are too many.

    Args:
        targets: from `match_anchors`.
        batch: images.
        limit: regions of an image at most.

    Returns:
        anchors long `(batch, limit)`, their tokens boolean `(batch, limit, tokens)`, their classes long
        `(batch, limit)` and boolean `(batch, limit)`, `False` at fillers (which are anchor 0 without tokens).
    """
    device = targets.image.device
    # Pairs come image by image, so sorting by image keeps each image's in its part, here the most central first.
    central = torch.where(targets.is_positive, targets.centerness, -1.0)
    order = central.argsort(descending=True, stable=True)
    order = order[targets.image[order].argsort(stable=True)]
    counts = to_device(targets.pairs_of_images, device, torch.long)
    first = counts.cumsum(0) - counts
    image = targets.image[order]
    rank = torch.arange(len(order), device=device) - first[image]
    # What is not chosen goes to one place more, which is cut off.
    place = torch.where(targets.is_positive[order] & (rank < limit), image * limit + rank, batch * limit)
    padded = []
    for values in (targets.anchor, targets.tokens, targets.classes, targets.is_positive):
        filled = values.new_zeros(batch * limit + 1, *values.shape[1:])
        filled[place] = values[order]
        padded.append(filled[:-1].unflatten(0, (batch, limit)))
    anchors, tokens, classes, mask = padded
    return anchors, tokens, classes, mask


def contrastive_loss(similarity: Tensor, is_match: Tensor) -> Tensor:
    """
    Cross entropy of each row of `similarity` against all its matches, summed over rows.

    A row with k matches has a target of 1 / k on each; a row without matches counts nothing.

    Args:
        similarity: `(rows, columns)`, divided by the temperature; minus infinity at columns that do not take part.
        is_match: boolean `(rows, columns)`.
    """
    matched = is_match.any(1, keepdim=True)
    # Rows without matches may be minus infinity throughout and would give NaN.
    log_probabilities = similarity.masked_fill(~matched, 0).log_softmax(1)
    return -(log_probabilities.masked_fill(~is_match, 0).sum(1) / is_match.sum(1).clamp(min=1)).sum()


@dataclass
class ContrastiveFeatures:
    """
    What L_inter compares, of the images of one process.

    Args:
        regions (`torch.Tensor` of shape `(batch, regions, dim)`), tokens (`torch.Tensor` of shape
            `(batch, tokens, dim)`): unit vectors.
        own_tokens (boolean `torch.Tensor` of shape `(batch, regions, tokens)`): the tokens of each region's box.
        region_mask (boolean `torch.Tensor` of shape `(batch, regions)`): `False` at fillers.
        token_mask (boolean `torch.Tensor` of shape `(batch, tokens)`): `False` at padding.
        region_classes (`torch.LongTensor` of shape `(batch, regions)`), token_classes (`torch.LongTensor` of shape
            `(batch, tokens)`): `prompts.class_id`, 0 for none.
        log_temperature (`torch.Tensor` of shape `(1,)`): what the dot products are divided by, as its logarithm.
    """

    regions: Tensor
    tokens: Tensor
    own_tokens: Tensor
    region_mask: Tensor
    token_mask: Tensor
    region_classes: Tensor
    token_classes: Tensor
    log_temperature: Tensor


@dataclass
class ContrastGradients:
    """
    What L_inter of a step of several micro-batches gives one of them.

    Args:
        value (`torch.Tensor` of shape `()`): its part of the loss, weighted.
        regions, tokens, log_temperature (`torch.Tensor`): the gradients of the step's loss with respect to the fields
            of the micro-batch's `ContrastiveFeatures`.
    """

    value: Tensor
    regions: Tensor
    tokens: Tensor
    log_temperature: Tensor

    def loss(self, features: ContrastiveFeatures) -> Tensor:
        """A loss of this value whose gradient with respect to the features is the given one."""
        linear = sum(
            (getattr(features, name) * getattr(self, name)).sum() for name in ("regions", "tokens", "log_temperature")
        )
        return self.value + linear - linear.detach()


def padded_over_processes(parts: Sequence[ContrastiveFeatures], max_tokens: int) -> ContrastiveFeatures:
    """
    Features of one or several micro-batches as those of one batch, of the same shapes on all processes.

    Args:
        parts: the micro-batches; all have as many regions.
        max_tokens: what texts are padded to where several processes train, so that none has to ask the others how
            long theirs are.
    """
    num_regions = parts[0].own_tokens.shape[1]
    num_tokens = max_tokens if num_processes() > 1 else max(part.own_tokens.shape[2] for part in parts)
    padded = []
    for part in parts:
        regions = (0, num_regions - part.own_tokens.shape[1])
        tokens = (0, num_tokens - part.own_tokens.shape[2])
        padded.append(
            {
                "regions": F.pad(part.regions, (0, 0, *regions)),
                "tokens": F.pad(part.tokens, (0, 0, *tokens)),
                "own_tokens": F.pad(part.own_tokens, (*tokens, *regions)),
                "region_mask": F.pad(part.region_mask, regions),
                "token_mask": F.pad(part.token_mask, tokens),
                "region_classes": F.pad(part.region_classes, regions),
                "token_classes": F.pad(part.token_classes, tokens),
            }
        )
    joined = {name: torch.cat([values[name] for values in padded]) for name in padded[0]}
    return ContrastiveFeatures(**joined, log_temperature=parts[0].log_temperature)


def inter_image_loss(
    regions: Tensor,
    tokens: Tensor,
    own_tokens: Tensor,
    region_mask: Tensor,
    token_mask: Tensor,
    region_classes: Tensor,
    token_classes: Tensor,
    log_temperature: Tensor,
    normalizer: Tensor,
) -> Tensor:
    """
    L_inter: every region meets the tokens of every image of the global batch, and every token every region.

    A region matches its own image's tokens by `own_tokens`, and the tokens of any other image by class (label
    propagation: `region_classes == token_classes`, where 0 is no class). Regions and tokens of this process are
    summed here, half each; the other processes sum theirs.

    Args:
        regions, tokens, own_tokens, region_mask, token_mask, region_classes, token_classes, log_temperature: the
            fields of `ContrastiveFeatures`, of the same shapes on all processes (`padded_over_processes`).
        normalizer: anchors that learn a box, mean over processes.
    """
    batch, num_regions, num_tokens = own_tokens.shape
    rank = dist.get_rank() if num_processes() > 1 else 0
    all_regions, all_tokens = gather(regions).flatten(0, 1), gather(tokens).flatten(0, 1)
    all_region_mask, all_token_mask = gather(region_mask).flatten(), gather(token_mask).flatten()
    all_region_classes, all_token_classes = gather(region_classes).flatten(), gather(token_classes).flatten()
    first_region, first_token = rank * batch * num_regions, rank * batch * num_tokens
    scale = (-log_temperature).exp()

    def losses(own: Tensor, others: Tensor, own_mask: Tensor, other_mask: Tensor, is_match: Tensor) -> Tensor:
        similarity = (own @ others.T * scale).masked_fill(~other_mask, -torch.inf)
        return contrastive_loss(similarity, is_match & own_mask[:, None] & other_mask)

    by_class = (region_classes.reshape(-1, 1) == all_token_classes) & (all_token_classes != 0)
    is_match = own_image_replaced(by_class, own_tokens, first_token)
    region_loss = losses(regions.flatten(0, 1), all_tokens, region_mask.flatten(), all_token_mask, is_match)

    by_class = (token_classes.reshape(-1, 1) == all_region_classes) & (all_region_classes != 0)
    is_match = own_image_replaced(by_class, own_tokens.transpose(1, 2), first_region)
    token_loss = losses(tokens.flatten(0, 1), all_regions, token_mask.flatten(), all_region_mask, is_match)
    return (region_loss + token_loss) / 2 / normalizer


def own_image_replaced(by_class: Tensor, own: Tensor, first_column: int) -> Tensor:
    """
    Matches by class between images, and by its own map within an image.

    Args:
        by_class: boolean `(batch * rows, columns)`.
        own: boolean `(batch, rows, own_columns)`; image i's columns start at `first_column + i * own_columns`.
        first_column: where this process's columns start.
    """
    batch, rows, own_columns = own.shape
    image, row, column = (torch.arange(size, device=own.device) for size in (batch, rows, own_columns))
    row = image[:, None] * rows + row
    column = first_column + image[:, None] * own_columns + column
    is_match = by_class.clone()
    is_match[row[:, :, None], column[:, None, :]] = own
    return is_match


# L_mlm ---------------------------------------------------------------------------------------------------------------


def masked_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """
    Cross entropy of masked tokens, their mean over all processes.

    Args:
        logits: `(masked tokens, vocabulary)`.
        labels: `(masked tokens,)`, their ids before they were masked.
    """
    count = mean_over_processes(to_device(float(len(labels)), logits.device))
    # It may be less than one; where it is 0, so is the sum.
    return F.cross_entropy(logits.float(), labels, reduction="sum") / count.clamp(min=torch.finfo(count.dtype).eps)


def masked_tokens(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """
    The masked tokens of a batch. A GPU is waited for only where the labels are on it.

    Args:
        features: `(batch, tokens, ...)`.
        labels: `(batch, tokens)`, the ids of masked tokens and -100 elsewhere.

    Returns:
        Their features `(masked tokens, ...)` and ids `(masked tokens,)`, on the device of the features.
    """
    flat = labels.flatten()
    index = (flat != -100).nonzero()[:, 0]
    return features.flatten(0, 1)[to_device(index, features.device)], to_device(flat[index], features.device)


# Heads ---------------------------------------------------------------------------------------------------------------


def next_tokens(labels: Tensor) -> Tensor:
    """
    What each token of a caption predicts.

    Args:
        labels: `(batch, tokens)`, the ids of the text, -100 at tokens that are not to be learned (padding).

    Returns:
        `(batch, tokens)`, the id of the token that follows each token; -100 after the last.
    """
    return F.pad(labels[:, 1:], (0, 1), value=-100)


def caption_loss(logits: Tensor, targets: Tensor, normalizer: Tensor | int | None = None) -> Tensor:
    """
    Cross entropy of each next token, averaged over the tokens that count; 0 where none does.

    Args:
        logits: `(batch, tokens, vocabulary)`.
        targets: `(batch, tokens)`, the id of the token after each token as [`next_tokens`] gives it, -100 where there
            is none to be learned.
        normalizer: what the sum is divided by; `None`: the tokens that count, their mean over processes.

    Raises:
        ValueError: when the shapes differ.
    """
    if targets.shape != logits.shape[:2]:
        raise ValueError(
            f"`labels` must have shape {tuple(logits.shape[:2])} (batch, tokens), not {tuple(targets.shape)}."
        )
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")
    if normalizer is None:
        normalizer = mean_over_processes((targets != -100).sum().float())
    # The mean over processes may be less than one; where it is 0, so is the sum.
    return losses / to_device(normalizer, losses.device).clamp(min=torch.finfo(torch.float32).eps)


def answer_loss(logits: Tensor, targets: Tensor, normalizer: Tensor | None = None) -> Tensor:
    """
    Binary cross entropy against soft targets, summed over the answers of a question and averaged over questions; 0
    where there is none.

    Args:
        logits: `(batch, answers)`.
        targets: `(batch, answers)` in [0, 1]; examples of NaN are no questions and do not count.
        normalizer: what the sum is divided by; `None`: the questions, their mean over processes.

    Raises:
        ValueError: when the shapes differ.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"`answer_labels` must have shape {tuple(logits.shape)} (questions, answers of the vocabulary), not "
            f"{tuple(targets.shape)}."
        )
    asked = ~targets.isnan().any(1)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float().nan_to_num(), reduction="none")
    losses = (losses.sum(1) * asked).sum()
    if normalizer is None:
        normalizer = mean_over_processes(asked.sum().float())
    # The mean over processes may be less than one; where it is 0, so is the sum.
    return losses / normalizer.clamp(min=torch.finfo(torch.float32).eps)


__all__ = [
    "AnchorTargets",
    "ContrastGradients",
    "ContrastiveFeatures",
    "OnHost",
    "answer_loss",
    "box_loss",
    "caption_loss",
    "centerness_loss",
    "check_labels",
    "choose_regions",
    "classes_of_tokens",
    "contrastive_loss",
    "detection_losses",
    "inter_image_loss",
    "masked_token_loss",
    "masked_tokens",
    "match_anchors",
    "next_tokens",
    "padded_over_processes",
    "token_loss",
    "unwrapped",
]
