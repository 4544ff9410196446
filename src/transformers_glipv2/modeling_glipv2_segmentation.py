"""
Instance segmentation: the detector's boxes, and in each a mask of what its label names (section 3.2 of the GLIPv2
paper).

The paper trains the mask head on a trained detector that stays as it is (`freeze_detector`), then optionally all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .boxes import denormalize_boxes, to_device
from .configuration_glipv2 import GLIPv2Config
from .distributed import mean_over_processes
from .layers.feature_maps import FeatureMaps
from .layers.mask_head import (
    REGIONS_PER_CHUNK,
    GLIPv2MaskHead,
    check_regions,
    count_masked_objects,
    init_mask_head,
    mask_loss,
    mask_targets,
    masked_objects,
    mean_weights,
    training_regions,
)
from .losses import check_labels, unwrapped
from .modeling_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2FreezableDetector,
    GLIPv2ImageFeatures,
    GLIPv2ObjectDetectionOutput,
    Labels,
    with_losses,
)


@dataclass
class GLIPv2InstanceSegmentationOutput(GLIPv2ObjectDetectionOutput):
    """
    Output of `GLIPv2ForInstanceSegmentation`: that of `GLIPv2ForObjectDetection`, and `predict_masks`.

    Masks are made for the boxes that are kept, after post-processing, so the output also keeps its model. Copies of an
    output (as Accelerate makes under mixed precision) lose it; there call `predict_masks` of the model.
    """

    def predict_masks(
        self, boxes: Sequence[torch.Tensor], positive_maps: Sequence[torch.Tensor]
    ) -> list[torch.FloatTensor]:
        """As `GLIPv2ForInstanceSegmentation.predict_masks`."""
        model = getattr(self, "_model", None)
        if model is None:
            raise ValueError(
                "This output is a copy and no longer knows its model; pass `model=` to the post-processing, or call "
                "`model.predict_masks(outputs, boxes, positive_maps)`."
            )
        return model.predict_masks(self, boxes, positive_maps)


class GLIPv2ForInstanceSegmentation(GLIPv2FreezableDetector, GLIPv2ForObjectDetection):
    """
    Detection of what a text names, with a mask for every box.

    Args:
        config: sizes and options; the fields `mask_...` are those of the mask head.
    """

    def __init__(self, config: GLIPv2Config):
        super().__init__(config)
        self.mask_head = GLIPv2MaskHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, GLIPv2MaskHead):
            init_mask_head(module)

    # Forward ---------------------------------------------------------------------------------------------------------

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        pixel_mask: torch.LongTensor | None = None,
        image_features: GLIPv2ImageFeatures | None = None,
        text_features: BaseModelOutputWithPooling | torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: Labels | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
    ) -> GLIPv2InstanceSegmentationOutput:
        """
        As `GLIPv2ForObjectDetection.forward`; masks come from `predict_masks` once boxes are chosen.

        Args:
            labels: also "masks", `(n, H, W)` bool of the whole un-padded image at whatever resolution, absent where
                there are none. A mask without any pixel stands for an object whose mask is not known. `loss_dict`
                adds loss_mask, and holds nothing else after `freeze_detector`.
        """
        with self.detector_gradients():
            output = super().forward(
                pixel_values=pixel_values,
                input_ids=input_ids,
                attention_mask=attention_mask,
                pixel_mask=pixel_mask,
                image_features=image_features,
                text_features=text_features,
                token_type_ids=token_type_ids,
                inputs_embeds=inputs_embeds,
                labels=None if self.detector_is_frozen else labels,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                return_dict=True,
            )
        losses = dict(output.loss_dict or {})
        if labels is not None:
            losses["loss_mask"] = self.mask_loss(output, labels)
        output = with_losses(output, losses, GLIPv2InstanceSegmentationOutput)
        output._model = self
        return output

    def predict_masks(
        self,
        output: GLIPv2ObjectDetectionOutput,
        boxes: Sequence[torch.Tensor],
        positive_maps: Sequence[torch.Tensor],
    ) -> list[torch.FloatTensor]:
        """
        Masks inside chosen boxes; the images and texts are not encoded again.

        Args:
            output: of `forward`.
            boxes: for each image `(n_i, 4)`, x1, y1, x2, y2 in pixels of the resized image, inclusive corners; on the
                CPU or on the model's device.
            positive_maps: for each image `(n_i, tokens)`, above 0 at the tokens of each box's label.

        Returns:
            For each image `(n_i, side, side)`, side = 2 `mask_pool_size`: the mean logit over the label's tokens of
            each cell of the box; float32. `paste_masks.py` puts them into the image.

        Raises:
            ValueError: when boxes and tokens do not fit the output, or a label has no tokens.
        """
        batch, tokens = output.fused_text.shape[:2]
        check_regions(boxes, positive_maps, batch, tokens)
        maps = self._mask_features(output)
        logits = []
        for index in range(batch):
            # Slices share memory, and chunks bound that of the activations.
            image_maps = [feature_map[index : index + 1] for feature_map in maps]
            text = output.fused_text[index : index + 1]
            chunks = [
                self.mask_head(image_maps, [some_boxes], text, [some_maps])
                for some_boxes, some_maps in zip(
                    boxes[index].split(REGIONS_PER_CHUNK),
                    positive_maps[index].split(REGIONS_PER_CHUNK),
                    strict=True,
                )
            ]
            logits.append(torch.cat(chunks))
        return logits

    def mask_loss(self, output: GLIPv2ObjectDetectionOutput, labels: Labels) -> torch.FloatTensor:
        """
        Binary cross entropy of the masks in the objects' own boxes and in predicted ones that match them.

        The mean over the regions of an object, then over objects: the number of objects is known from the labels, so
        that the loss of a batch is the same in one piece, on several processes and in accumulated micro-batches.
        """
        labels = unwrapped(labels)
        check_labels(labels, *output.fused_text.shape[:2])
        # All processes take part in the mean, also those without a mask.
        count = to_device(float(count_masked_objects(labels)), output.logits.device)
        num_objects = mean_over_processes(count).clamp(min=torch.finfo(torch.float32).eps)
        regions = [self._image_regions(output, index, label) for index, label in enumerate(labels)]
        boxes, positive_maps, targets, weights = zip(*regions, strict=True)
        logits = self.mask_head(self._mask_features(output), boxes, output.fused_text, positive_maps)
        return mask_loss(logits, torch.cat(targets), torch.cat(weights), num_objects)

    def _mask_features(self, output: GLIPv2ObjectDetectionOutput) -> FeatureMaps:
        before = self.config.mask_feature_source == "before_fusion"
        return output.feature_maps if before else output.fused_feature_maps

    @torch.no_grad()
    def _image_regions(
        self, output: GLIPv2ObjectDetectionOutput, index: int, label: dict | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Boxes `(regions, 4)`, positive maps `(regions, tokens)`, targets and weights `(regions,)` of one image's
        training regions; the weights of an object's regions add up to 1.
        """
        device, side = output.logits.device, self.mask_head.output_size
        masks = None if label is None else label.get("masks")
        if masks is None:
            tokens = output.logits.shape[2]
            nothing = output.logits.new_zeros
            return nothing((0, 4)), nothing((0, tokens)), nothing((0, side, side)), nothing(0)
        if masks.ndim != 3 or len(masks) != len(label["boxes"]):
            raise ValueError(
                f"`labels[{index}]['masks']` has shape {tuple(masks.shape)}; expected ({len(label['boxes'])}, height, "
                "width), one mask for each box."
            )
        # Chosen where the labels are: on the CPU, a GPU is not waited for.
        known = masked_objects(label).to(masks.device)
        image_size = output.image_sizes[index]
        positive_map = to_device(label["positive_map"][known], device)
        gt_boxes = denormalize_boxes(to_device(label["boxes"][known], device), image_size)
        pred_boxes = denormalize_boxes(output.pred_boxes[index], image_size)
        scores = output.logits[index].sigmoid() @ mean_weights(positive_map).T
        scores = scores * output.centerness[index, :, None].sigmoid()
        boxes, owners, is_region = training_regions(gt_boxes, pred_boxes, scores)
        regions = gt_boxes.new_zeros(len(known)).index_add_(0, owners, is_region.to(gt_boxes.dtype))
        weights = is_region / regions.clamp(min=1)[owners]
        return boxes, positive_map[owners], mask_targets(masks[known], boxes, owners, image_size, side), weights


__all__ = ["GLIPv2ForInstanceSegmentation", "GLIPv2InstanceSegmentationOutput"]
