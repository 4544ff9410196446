"""Images to `pixel_values` and `pixel_mask`, on PIL and numpy: to the bit what the original code read."""

import numpy as np
import PIL.Image
import torch
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.utils import TensorType

from .image_processing_glipv2 import (
    GLIPv2ImageProcessorBase,
    GLIPv2ImageProcessorKwargs,
    padded_size,
    resized_size,
    to_rgb_tensor,
)


class GLIPv2ImageProcessorPil(GLIPv2ImageProcessorBase, PilBackend):
    r"""
    As [`GLIPv2ImageProcessor`], with the same arguments and results, but resized by PIL. Values differ by a grey level
    at most (in images of pure noise by two, once in 10^5).
    """

    valid_kwargs = GLIPv2ImageProcessorKwargs

    def process_image(
        self,
        image: PIL.Image.Image | np.ndarray | torch.Tensor,
        name: str = "image",
        do_convert_rgb: bool | None = True,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = True,
        **kwargs,
    ) -> np.ndarray:
        """One image as `(3, H, W)`, uint8 or float32, red, green, blue."""
        return to_rgb_tensor(image, name, input_data_format, bool(do_convert_rgb), bool(do_rescale)).cpu().numpy()

    def resize(
        self,
        image: np.ndarray,
        size: SizeDict,
        resample: PILImageResampling | int | None = None,
        reducing_gap: int | None = None,
        **kwargs,
    ) -> np.ndarray:
        """`(3, H, W)` to the size of GLIP's rule, by PIL."""
        height, width = resized_size(image.shape[-2], image.shape[-1], size)
        if image.dtype == np.uint8:
            pil_image = PIL.Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            return np.array(pil_image.resize((width, height), resample, reducing_gap=reducing_gap)).transpose(2, 0, 1)
        # PIL has no float colour image, only float channels.
        channels = [PIL.Image.fromarray(channel).resize((width, height), resample) for channel in image]
        return np.stack([np.array(channel) for channel in channels])

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_bgr: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        do_pad: bool,
        pad_size: SizeDict | None,
        size_divisor: int | None,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        processed = []
        for image in images:
            if do_resize:
                image = self.resize(image, size, resample)
            if do_bgr:
                image = image[::-1]
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            processed.append(image)
        if not do_pad:
            masks = [np.ones(image.shape[-2:], dtype=np.int64) for image in processed]
            return BatchFeature({"pixel_values": processed, "pixel_mask": masks}, tensor_type=return_tensors)
        height, width = padded_size([image.shape[-2:] for image in processed], size_divisor, pad_size)
        pixel_values = np.zeros((len(processed), 3, height, width), dtype=processed[0].dtype)
        pixel_mask = np.zeros((len(processed), height, width), dtype=np.int64)
        for padded, mask, image in zip(pixel_values, pixel_mask, processed, strict=True):
            padded[:, : image.shape[-2], : image.shape[-1]] = image
            mask[: image.shape[-2], : image.shape[-1]] = 1
        return BatchFeature({"pixel_values": pixel_values, "pixel_mask": pixel_mask}, tensor_type=return_tensors)


__all__ = ["GLIPv2ImageProcessorPil"]
