"""
Steps of several micro-batches whose gradient is that of one batch of the same images.

Every loss is a sum divided by a count: of positives, tokens, questions. Micro-batches that each divide by their own
count would weigh an object by the micro-batch that it is in. So the counts of the whole step are taken before the
first backward pass, and each loss is scaled. L_inter compares the regions and tokens of all images of the step: a
first pass of the encoders, without gradients, gathers them, and the gradient of the loss with respect to them is
handed to the micro-batches (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
2021).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from transformers_glipv2.boxes import to_device
from transformers_glipv2.distributed import mean_over_processes
from transformers_glipv2.layers.input_checks import image_sizes_of
from transformers_glipv2.layers.mask_head import count_masked_objects
from transformers_glipv2.losses import (
    AnchorTargets,
    ContrastGradients,
    ContrastiveFeatures,
    OnHost,
    inter_image_loss,
    padded_over_processes,
)
from transformers_glipv2.training.evaluation import with_forward_methods

Batch = Mapping[str, Any]

_HOST_LABELS = ("mlm_labels", "answer_labels", "caption_labels")

# The losses of a model with boxes are divided by one positive at least (`match_anchors`), the others by a tiny number.
_LEAST = {"loss_centerness": 1.0, "loss_intra": 1.0}


@dataclass
class MicroBatch:
    """
    What a micro-batch needs to know of its step.

    Attributes:
        factors (`dict[str, torch.Tensor]`): by name of the loss: the number that the micro-batch divides it by, over
            that of the whole step. Losses that are not named here are divided by the number of micro-batches.
        contrast (`ContrastGradients`, *optional*): its part of L_inter.
        num_micro_batches (`int`): of the step.
    """

    factors: dict[str, torch.Tensor]
    contrast: ContrastGradients | None
    num_micro_batches: int

    def arguments(self) -> dict[str, Any]:
        """What the model's forward gets beside the batch."""
        return {} if self.contrast is None else {"contrast": self.contrast}

    def scaled(self, loss: torch.Tensor, loss_dict: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """
        Losses as parts of the step's; their sums over the micro-batches are those of one batch.

        Args:
            loss (`torch.Tensor`), loss_dict (`Mapping[str, torch.Tensor]`, *optional*): of the model's output.

        Returns:
            `dict[str, torch.Tensor]`: "loss", the sum, and each part.
        """
        if self.num_micro_batches == 1:
            return {"loss": loss, **(loss_dict or {})}
        if not loss_dict:
            return {"loss": loss / self.num_micro_batches}
        parts: dict[str, torch.Tensor] = {}
        for name, part in loss_dict.items():
            if name == "loss_inter" and self.contrast is not None:
                parts[name] = part
            else:
                parts[name] = part * self.factors.get(name, 1 / self.num_micro_batches)
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def prepare_step(
    accelerator: Accelerator, model: nn.Module, batches: Sequence[Batch], seed_of: Callable[[int], int]
) -> list[MicroBatch]:
    """
    Counts what the losses of a step are divided by, and computes L_inter of all its micro-batches. Called by all
    processes.

    Args:
        accelerator (`Accelerator`), model (`nn.Module`): prepared.
        batches (`Sequence[Mapping]`): the micro-batches of this process.
        seed_of (`Callable[[int], int]`): the seed of dropout of each micro-batch, so that the first pass of the
            encoders drops what the second does.
    """
    if len(batches) == 1:
        return [MicroBatch({}, None, 1)]
    own: Any = accelerator.unwrap_model(model)
    features: list[ContrastiveFeatures] = []
    targets: list[AnchorTargets | None] = []
    contrastive = hasattr(own, "encode_contrast") and own.config.inter_loss_weight != 0
    contrastive = contrastive and all(isinstance(batch.get("labels"), list) for batch in batches)
    if contrastive:
        encode: Any = with_forward_methods(accelerator, model, "encode_contrast").encode_contrast
        taken = ("pixel_values", "input_ids", "labels", "attention_mask", "pixel_mask")
        for index, batch in enumerate(batches):
            torch.manual_seed(seed_of(index))
            inputs = on_device({name: batch[name] for name in taken if name in batch}, accelerator.device)
            with torch.no_grad(), accelerator.autocast():
                found, matched = encode(**inputs)
            features.append(found)
            targets.append(matched)
    else:
        targets = [_match_anchors(own, batch, accelerator.device) for batch in batches]
    counts = [
        count_normalizers(batch, matched, accelerator.device) for batch, matched in zip(batches, targets, strict=True)
    ]
    # The same ones on every process: they depend on the collator, not on what the examples hold.
    names = list(dict.fromkeys(name for count in counts for name in count))
    if not names:
        return [MicroBatch({}, None, len(batches)) for _ in batches]
    zero = torch.zeros((), device=accelerator.device)
    table = torch.stack([torch.stack([count.get(name, zero) for name in names]) for count in counts])
    table = mean_over_processes(table)
    least = to_device([_LEAST.get(name, torch.finfo(torch.float32).eps) for name in names], table.device)
    factors = table.clamp(min=least) / table.sum(0).clamp(min=least)
    contrasts: Sequence[ContrastGradients | None] = [None] * len(batches)
    if contrastive:
        num_positives = table[:, names.index("loss_intra")].sum().clamp(min=1)
        contrasts = contrast_gradients(
            features, num_positives, own.config.inter_loss_weight, own.config.max_text_length
        )
    return [
        MicroBatch(dict(zip(names, factor, strict=True)), contrast, len(batches))
        for factor, contrast in zip(factors, contrasts, strict=True)
    ]


def count_normalizers(batch: Batch, targets: AnchorTargets | None, device: torch.device) -> dict[str, torch.Tensor]:
    """
    What the losses of a batch are divided by, on this process alone.

    Args:
        batch (`Mapping`): of a collator.
        targets (`AnchorTargets`, *optional*): of its boxes, where they are trained.
        device (`torch.device`): of the result.

    Returns:
        `dict[str, torch.Tensor]`: by the name of the loss.
    """
    counts: dict[str, Any] = {}
    labels = batch.get("labels")
    if targets is not None:
        counts |= dict.fromkeys(("loss_centerness", "loss_intra"), targets.is_positive.sum())
        counts["loss_box"] = (targets.centerness * targets.is_positive).sum()
    if isinstance(labels, list):
        # Also without masks: other processes may have some.
        counts["loss_mask"] = count_masked_objects(labels)
    for name, loss in (("labels", "loss_caption"), ("caption_labels", "loss_caption")):
        if isinstance(batch.get(name), torch.Tensor):
            counts[loss] = (batch[name][:, 1:] != -100).sum()
    if "mlm_labels" in batch:
        counts["loss_mlm"] = (batch["mlm_labels"] != -100).sum()
    if "answer_labels" in batch:
        counts["loss_answer"] = (~batch["answer_labels"].isnan().any(1)).sum()
    return {name: to_device(count, device, torch.float32) for name, count in counts.items()}


def contrast_gradients(
    features: Sequence[ContrastiveFeatures], num_positives: torch.Tensor, weight: float, max_tokens: int
) -> list[ContrastGradients]:
    """
    L_inter of a whole step, and its gradient with respect to the features of each micro-batch.

    Args:
        features (`Sequence[ContrastiveFeatures]`): of the micro-batches of this process.
        num_positives (`torch.Tensor`): anchors of the step that learn a box, mean over processes.
        weight (`float`): of the loss.
        max_tokens (`int`): of a text, as of `padded_over_processes`.
    """
    leaves = [
        replace(
            part,
            regions=part.regions.detach().requires_grad_(),
            tokens=part.tokens.detach().requires_grad_(),
            log_temperature=features[0].log_temperature,
        )
        for part in features
    ]
    log_temperature = features[0].log_temperature.detach().requires_grad_()
    with torch.enable_grad():
        leaves[0].log_temperature = log_temperature
        padded = padded_over_processes(leaves, max_tokens)
        loss = weight * inter_image_loss(**vars(padded), normalizer=num_positives)
        inputs = [tensor for part in leaves for tensor in (part.regions, part.tokens)]
        *gradients, temperature = torch.autograd.grad(loss, [*inputs, log_temperature], materialize_grads=True)
    count = len(features)
    return [
        ContrastGradients(loss.detach() / count, regions, tokens, temperature / count)
        for regions, tokens in zip(gradients[::2], gradients[1::2], strict=True)
    ]


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """
    A batch on the device, but for labels whose values decide about shapes, and lists of labels: many small tensors,
    which the losses join before they move them.
    """
    return {
        name: OnHost(value)
        if isinstance(value, list) or name in _HOST_LABELS
        else send_to_device(value, device, non_blocking=True)
        for name, value in batch.items()
    }


def _match_anchors(model: Any, batch: Batch, device: torch.device) -> AnchorTargets | None:
    """Which anchors learn which boxes, without a forward pass; `None` where the model does not train on boxes."""
    labels, pixel_values = batch.get("labels"), batch.get("pixel_values")
    trained = hasattr(model, "match_anchors") and not getattr(model, "detector_is_frozen", False)
    if not trained or not isinstance(labels, list) or pixel_values is None:
        return None
    height, width = pixel_values.shape[-2:]
    # Backbones and pyramid round up at every halving.
    level_shapes = [(-(-height // stride), -(-width // stride)) for stride in model.config.anchor_strides]
    mask = batch.get("pixel_mask")
    mask = torch.ones(len(pixel_values), height, width) if mask is None else mask
    sizes = to_device(image_sizes_of(mask), device)
    return model.match_anchors(labels, level_shapes, sizes, batch["input_ids"].shape[1])
