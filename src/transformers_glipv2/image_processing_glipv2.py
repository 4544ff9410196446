"""Images to `pixel_values` and `pixel_mask`, on torchvision's operators."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from torchvision.transforms.v2 import functional as tvF
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import TensorType, logging

from .images.image_io import ImageFile, open_image, orientation_of, to_rgb
from .post_processing import one_label_detections

ImageSource = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray | torch.Tensor

logger = logging.get_logger(__name__)


class GLIPv2ImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_bgr (`bool`, *optional*, defaults to `True`):
        Turn the channels to blue, green, red, as the released GLIP weights expect them. `image_mean` and `image_std`
        are in the order of the network's channels.
    size_divisor (`int`, *optional*, defaults to 32):
        Pad height and width of a batch to a multiple of it.
    allow_urls (`bool`, *optional*, defaults to `True`):
        Download images that are given by their URL. Set it to `False` where strangers say what is opened.
    allow_private_urls (`bool`, *optional*, defaults to `False`):
        Also download from this machine and from private networks.
    """

    do_bgr: bool | None
    size_divisor: int | None
    allow_urls: bool | None
    allow_private_urls: bool | None


# Sizes ---------------------------------------------------------------------------------------------------------------


def resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """
    GLIP's resize rule.

    The short side becomes `shortest_edge`; where the long side would then exceed `longest_edge`, the short side
    becomes the rounded `longest_edge * short / long` instead. The long side follows, rounded down. So the long side
    may exceed `longest_edge` by the rounding, except that an image so narrow that its short side would vanish becomes
    1 by `longest_edge` pixels.

    Args:
        height, width: of the image in pixels.
        size: `shortest_edge` and optionally `longest_edge`, or `height` and `width` for an exact size.

    Returns:
        (height, width) in pixels.
    """
    if size.height and size.width:
        return size.height, size.width
    short, long = sorted((height, width))
    new_short: Any = size.shortest_edge
    if size.longest_edge and long / short * new_short > size.longest_edge:
        new_short = round(size.longest_edge * short / long)
    new_long = int(new_short * long / short)
    if new_short < 1:
        new_short, new_long = 1, size.longest_edge
    return (new_short, new_long) if height <= width else (new_long, new_short)


def check_size(size: SizeDict) -> None:
    """
    Raises:
        ValueError: unless `size` has "shortest_edge" (and optionally "longest_edge"), or "height" and "width", in
            whole pixels.
    """
    given = {name: value for name, value in dict(size).items() if value is not None}
    if set(given) not in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"height", "width"}):
        raise ValueError(
            f'`size` must have "shortest_edge" (and optionally "longest_edge"), or "height" and "width"; got {given}.'
        )
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f'`size["{name}"]` must be a whole number of pixels, at least 1; got {value!r}.')


def set_shortest_edge(processor: Any, shortest_edge: int) -> None:
    """
    Lets a processor resize to another shortest edge, and to a longest one in the same proportion.

    Args:
        processor: `GLIPv2Processor` or an image processor of it; changed in place, also for when it is saved.
        shortest_edge (`int`): in pixels.

    Raises:
        ValueError: when it is not above 0, or the processor resizes to a fixed height and width.
    """
    image_processor = getattr(processor, "image_processor", processor)
    size = image_processor.size
    if not size.shortest_edge:
        raise ValueError(f"The processor resizes to {size.height}x{size.width} pixels; it has no shortest edge.")
    check_size(SizeDict(shortest_edge=shortest_edge))
    longest_edge = size.longest_edge and round(size.longest_edge * shortest_edge / size.shortest_edge)
    image_processor.size = SizeDict(shortest_edge=shortest_edge, longest_edge=longest_edge)


def padded_size(sizes: list[tuple[int, int]], size_divisor: int | None, pad_size: SizeDict | None) -> tuple[int, int]:
    """
    (height, width) that hold every image of a batch: `pad_size`, or the largest of `sizes` rounded up to a multiple
    of `size_divisor`.

    Raises:
        ValueError: when an image is larger than `pad_size`.
    """
    height, width = (max(values) for values in zip(*sizes, strict=True))
    if pad_size is not None:
        if not (pad_size.height and pad_size.width):
            raise ValueError(f'`pad_size` must have "height" and "width", got {dict(pad_size)}.')
        if pad_size.height < height or pad_size.width < width:
            raise ValueError(
                f"`pad_size` {pad_size.height}x{pad_size.width} is smaller than a resized image ({height}x{width}); "
                "enlarge it or shrink `size`."
            )
        return pad_size.height, pad_size.width
    divisor = size_divisor or 1
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


# Forms of images ---------------------------------------------------------------------------------------------------


def get_image_size(image: ImageSource) -> tuple[int, int]:
    """(height, width) in pixels of a PIL image, an array `(H, W[, C])` or `(C, H, W)`, or a tensor."""
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    if image.ndim == 2:
        return tuple(image.shape)
    first = _channels_first(image, None)
    return tuple(image.shape[-2:]) if first else tuple(image.shape[:2])


def flatten_images(images: Any, **options: Any) -> list[ImageSource]:
    """
    One image, a batch `(B, ...)`, or (nested) lists of these as one list.

    Args:
        images: image objects are taken as they are; paths, URLs and bytes are opened, see [`open_image`].
        options: of `open_image`.
    """
    if isinstance(images, list | tuple):
        return [single for image in images for single in flatten_images(image, **options)]
    if isinstance(images, str | os.PathLike | bytes):
        return [open_image(images, **options)]
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    if isinstance(images, PIL.Image.Image | np.ndarray | torch.Tensor):
        return [images]
    raise TypeError(
        f"An image must be a PIL image, a numpy array, a torch tensor, a path or a URL, not {type(images)}."
    )


def _channels_first(array: np.ndarray | torch.Tensor, input_data_format: ChannelDimension | str | None) -> bool:
    """Where shapes leave it open (an image 3 pixels high or wide), arrays are taken as HWC and tensors as CHW."""
    if input_data_format is not None:
        return ChannelDimension(input_data_format) == ChannelDimension.FIRST
    first, last = (array.shape[axis] in (1, 3, 4) for axis in (0, -1))
    if not (first or last):
        raise ValueError(
            f"An image of shape {tuple(array.shape)} has no axis of 1, 3 or 4 channels; "
            "pass (height, width), (height, width, channels) or (channels, height, width)."
        )
    return first if isinstance(array, torch.Tensor) else not last


def to_rgb_tensor(
    image: PIL.Image.Image | np.ndarray | torch.Tensor,
    name: str = "image",
    input_data_format: ChannelDimension | str | None = None,
    do_convert_rgb: bool = True,
    do_rescale: bool = True,
) -> torch.Tensor:
    """
    Any image as channels first, red, green, blue.

    Args:
        image: a PIL image of any mode, or an array or tensor `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4
            channels, of 8 or 16 bits, or floating point in 0..1 or 0..255. Its pixels are taken as they are
            stored: files are turned upright when they are opened, image objects are not.
        name: of the image in error messages.
        input_data_format: "channels_first" or "channels_last"; by default read off the shape.
        do_convert_rgb: turn grey to RGB and drop transparency; otherwise only 3 channels are allowed.
        do_rescale: bring floating point images to 0..255, as what `rescale_factor` is meant for. Otherwise they are
            taken as they are.

    Returns:
        `(3, H, W)`, uint8, or float32 where the image was floating point.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for an empty image, a wrong shape, NaN, or values out of range.
    """
    is_array = not isinstance(image, PIL.Image.Image)
    if not is_array:
        if orientation_of(image) != 1:
            logger.warning_once(
                "An image object has an EXIF orientation; its pixels are taken as they are stored. Pass its path, or "
                "`images.image_io.open_image(image)`, to have it upright."
            )
        if 0 in image.size:
            raise ValueError(f"`{name}` is empty: {image.height}x{image.width} pixels.")
        try:
            image = np.array(to_rgb(image))
        except ValueError as error:
            raise ValueError(f"`{name}` {error}") from error
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise TypeError(f"`{name}` must be a PIL image, a numpy array or a torch tensor, not {type(image)}.")
    if str(image.dtype).removeprefix("torch.") not in _DTYPES:
        raise TypeError(
            f"`{name}` has dtype {image.dtype}; expected {', '.join(_DTYPES)}. "
            "Convert it, e.g. with `.astype(numpy.uint8)` for values 0..255."
        )
    if image.ndim not in (2, 3):
        raise ValueError(f"`{name}` must have 2 or 3 dimensions, not shape {tuple(image.shape)}.")
    if 0 in image.shape:
        raise ValueError(f"`{name}` is empty: shape {tuple(image.shape)}.")
    channels_first = image.ndim == 2 or _channels_first(image, input_data_format)
    if isinstance(image, np.ndarray):
        # torch reads neither negative strides nor, without a warning, memory it must not write.
        image = torch.from_numpy(image.copy() if is_array else image)
    if image.ndim == 2:
        image = image[None]
    elif not channels_first:
        image = image.permute(2, 0, 1)
    if image.shape[0] == 1 and do_convert_rgb:
        image = image.expand(3, -1, -1)
    elif image.shape[0] == 4 and do_convert_rgb:
        image = image[:3]
    if image.shape[0] != 3:
        raise ValueError(f"`{name}` has {image.shape[0]} channels; expected 3 (or `do_convert_rgb=True`).")
    return _to_8_bit_range(image, name, do_rescale).contiguous()


_DTYPES = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64")


def _to_8_bit_range(image: torch.Tensor, name: str, do_rescale: bool) -> torch.Tensor:
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.uint16:
        return (image.float() / 257).round().to(torch.uint8)
    image = image.float()
    low, high = (float(value) for value in image.aminmax())  # NaN goes through both
    if not -float("inf") < low <= high < float("inf"):
        raise ValueError(f"`{name}` holds NaN or infinite pixels; repair or drop the image.")
    if not do_rescale:
        return image
    if low < 0 or high > 255:
        raise ValueError(
            f"`{name}` has values from {low:g} to {high:g}; a floating point image must be in 0..1 or 0..255. "
            "For one that is normalised already pass `do_rescale=False, do_normalize=False`."
        )
    return image * 255 if high <= 1 else image


# The processor -------------------------------------------------------------------------------------------------------


class GLIPv2ImageProcessorBase:
    """What the two backends share: options and their defaults, and how images are read."""

    valid_kwargs = GLIPv2ImageProcessorKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values", "pixel_mask"]
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    size: ClassVar[dict[str, int]] = {"shortest_edge": 800, "longest_edge": 1333}
    resample = PILImageResampling.BILINEAR
    do_bgr = True
    do_rescale = True
    rescale_factor = 1.0
    do_normalize = True
    image_mean = (103.53, 116.28, 123.675)
    image_std = (57.375, 57.12, 58.395)
    do_pad = True
    size_divisor = 32
    allow_urls = True
    allow_private_urls = False

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        check_size(kwargs["size"])
        divisor = kwargs.get("size_divisor")
        if divisor is not None and (not isinstance(divisor, int) or divisor < 1):
            raise ValueError(f"`size_divisor` must be an integer of at least 1, got {divisor!r}.")
        return kwargs

    def usual_edges(self) -> list[int]:
        """The sides in pixels that padded images have most often: of the shortest and the longest edge."""
        size = SizeDict(**self.size) if isinstance(self.size, Mapping) else self.size
        edges = [size.shortest_edge, size.longest_edge, size.height, size.width]
        divisor = self.size_divisor or 1
        return sorted({-(-edge // divisor) * divisor for edge in edges if edge})

    def open_image(self, source: ImageFile, timeout: float | None = None) -> PIL.Image.Image:
        """As [`image_io.open_image`]: upright, RGB; URLs as this processor allows them."""
        return open_image(source, timeout, bool(self.allow_urls), bool(self.allow_private_urls))

    def fetch_images(
        self, image_url_or_urls: Any, allow_urls: bool | None = None, allow_private_urls: bool | None = None
    ) -> list[ImageSource]:
        """
        One image or several, nested or not, as a flat list: paths and URLs are opened, see [`image_io.open_image`];
        other images come back as they are. `allow_urls` and `allow_private_urls` are the processor's by default.
        """
        return flatten_images(
            image_url_or_urls,
            allow_urls=bool(self.allow_urls if allow_urls is None else allow_urls),
            allow_private_urls=bool(self.allow_private_urls if allow_private_urls is None else allow_private_urls),
        )

    def _prepare_image_like_inputs(
        self,
        images: Any,
        expected_ndims: int = 3,
        allow_urls: bool | None = None,
        allow_private_urls: bool | None = None,
        **kwargs,
    ) -> list[Any]:
        images = self.fetch_images(images, allow_urls=allow_urls, allow_private_urls=allow_private_urls)
        if not images:
            raise ValueError("`images` is empty; pass at least one image.")
        return [self.process_image(image, name=f"images[{index}]", **kwargs) for index, image in enumerate(images)]

    def post_process_object_detection(
        self, outputs: Mapping[str, Any], threshold: float = 0.05, target_sizes: Any = None
    ) -> list[dict[str, torch.Tensor]]:
        """
        Boxes where each text is a single label, as transformers' own zero-shot detection pipeline asks for them; see
        [`one_label_detections`]. For several labels in a text use the processor's methods.
        """
        return one_label_detections(outputs, threshold, target_sizes, bool(self.size.shortest_edge))


class GLIPv2ImageProcessor(GLIPv2ImageProcessorBase, TorchvisionBackend):
    r"""
    Prepares images as GLIP did: resize with its own rule, order the channels, rescale, normalise, then pad with
    zeros to the right and below.

    Images may be PIL images of any mode, arrays, tensors, paths or URLs, of different sizes in one call. Files are
    turned upright (EXIF); the pixels of image objects are taken as they are stored, so that boxes refer to them.
    Transparency is dropped. Defaults are those of the released GLIP weights.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`): resize by `size`.
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 800, "longest_edge": 1333}`):
            see [`resized_size`]; `{"height": h, "width": w}` gives an exact size.
        resample (`PILImageResampling`, *optional*, defaults to bilinear): with antialiasing.
        do_bgr (`bool`, *optional*, defaults to `True`): turn the channels to blue, green, red.
        do_rescale (`bool`, *optional*, defaults to `True`): multiply 0..255 by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to 1.0).
        do_normalize (`bool`, *optional*, defaults to `True`): subtract `image_mean`, divide by `image_std`, both after
            rescaling and in the order of the network's channels.
        image_mean, image_std (`list[float]`, *optional*): of the released weights, in blue, green, red.
        do_pad (`bool`, *optional*, defaults to `True`): pad to the batch's largest height and width.
        pad_size (`dict[str, int]`, *optional*): pad to this height and width instead.
        size_divisor (`int`, *optional*, defaults to 32): round the padded size up to a multiple of it.
        allow_urls (`bool`, *optional*, defaults to `True`): download images that are given by their URL; `False` for
            services.
        allow_private_urls (`bool`, *optional*, defaults to `False`): also from this machine and private networks.

    Returns (when called):
        `BatchFeature` with `pixel_values` `(batch, 3, height, width)` float32 and `pixel_mask`
        `(batch, height, width)` int64, 1 for the image and 0 for padding.
    """

    def process_image(
        self,
        image: PIL.Image.Image | np.ndarray | torch.Tensor,
        name: str = "image",
        do_convert_rgb: bool | None = True,
        input_data_format: str | ChannelDimension | None = None,
        do_rescale: bool | None = True,
        device: str | torch.device | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """One image as [`to_rgb_tensor`] gives it, on `device`."""
        tensor = to_rgb_tensor(image, name, input_data_format, bool(do_convert_rgb), bool(do_rescale))
        return tensor if device is None else tensor.to(device)

    def resize(
        self,
        image: torch.Tensor,
        size: SizeDict,
        resample: "PILImageResampling | tvF.InterpolationMode | int | None" = None,
        antialias: bool = True,
        **kwargs,
    ) -> torch.Tensor:
        """`(..., 3, H, W)` to the size that [`resized_size`] gives."""
        height, width = resized_size(image.shape[-2], image.shape[-1], size)
        if (height, width) == tuple(image.shape[-2:]):
            return image
        return super().resize(image, SizeDict(height=height, width=width), resample, antialias, **kwargs)

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: "PILImageResampling | tvF.InterpolationMode | int | None",
        do_bgr: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        do_pad: bool,
        pad_size: SizeDict | None,
        size_divisor: int | None,
        disable_grouping: bool | None,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        groups, index = group_images_by_shape(images, disable_grouping=disable_grouping)
        for shape, group in groups.items():
            if do_resize:
                group = self.resize(group, size, resample)
            if do_bgr:
                group = group.flip(-3)
            groups[shape] = self.rescale_and_normalize(
                group, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
        images = reorder_images(groups, index)
        if not do_pad:
            masks = [torch.ones_like(image[0], dtype=torch.long) for image in images]
            return BatchFeature({"pixel_values": images, "pixel_mask": masks}, tensor_type=return_tensors)
        height, width = padded_size([tuple(image.shape[-2:]) for image in images], size_divisor, pad_size)
        pixel_values = images[0].new_zeros(len(images), 3, height, width)
        pixel_mask = torch.zeros(len(images), height, width, dtype=torch.long, device=pixel_values.device)
        for padded, mask, image in zip(pixel_values, pixel_mask, images, strict=True):
            padded[:, : image.shape[-2], : image.shape[-1]] = image
            mask[: image.shape[-2], : image.shape[-1]] = 1
        return BatchFeature({"pixel_values": pixel_values, "pixel_mask": pixel_mask}, tensor_type=return_tensors)


__all__ = ["GLIPv2ImageProcessor", "GLIPv2ImageProcessorKwargs", "set_shortest_edge"]
