"""Images from files, URLs and memory: one way for every entry point, so that all see the same pixels."""

import base64
import binascii
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from .image_download import download_image, is_url

# What `open_image` opens.
ImageFile = str | os.PathLike | bytes | PIL.Image.Image

# Modes of PIL whose values do not end at 255; PIL's own conversion to RGB would clip them to white.
_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_ORIENTATION = 0x0112  # of EXIF


def open_image(
    source: ImageFile,
    timeout: float | None = None,
    allow_urls: bool = True,
    allow_private_urls: bool = False,
    upright: bool = True,
) -> PIL.Image.Image:
    """
    Opens an image: whole, upright, as 8-bit RGB.

    16-bit and floating point images are scaled to 8 bits, transparency is dropped, and of an animated file the first
    frame is read.

    Args:
        source (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`): a path, an http(s) URL, a `data:image/` or base64
            string, the content of a file, or an image that is open already.
        timeout (`float`, *optional*): seconds that a download may take; 30 by default.
        allow_urls (`bool`, *optional*, defaults to `True`): `False` refuses URLs, for services.
        allow_private_urls (`bool`, *optional*, defaults to `False`): also URLs of this machine and private networks.
        upright (`bool`, *optional*, defaults to `True`): turn the image by its EXIF orientation; `False` leaves its
            pixels as they are stored.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        FileNotFoundError: when there is no such file.
        OSError: when a file or URL cannot be read; TimeoutError when a download takes too long.
        ValueError: when the content is not an image, is truncated, or has more than twice
            `PIL.Image.MAX_IMAGE_PIXELS` pixels (a decompression bomb), or when the URL is refused. The error names
            the file.
        TypeError: for another type.
    """
    content = _content(source, timeout, allow_urls, allow_private_urls)
    with _errors_named(_name(source)), _opened(content) as image:
        image.load()
        if upright and orientation_of(image) != 1:
            image = PIL.ImageOps.exif_transpose(image)
        return to_rgb(image)


def image_size(source: ImageFile) -> tuple[int, int]:
    """(width, height) in pixels of the upright image. Only the head of a file is read; raises as `open_image`."""
    content = _content(source, None, True, False)
    with _errors_named(_name(source)), _opened(content) as image:
        width, height = image.size
        return (height, width) if orientation_of(image) >= 5 else (width, height)


def orientation_of(image: PIL.Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 5 to 8 exchange width and height. Damaged EXIF counts as upright."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # viewers show such files too
        return 1
    return orientation if orientation in range(1, 9) else 1


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """
    An image of any mode as 8-bit RGB; transparency is dropped, as GLIP did.

    16 bits are divided by 257. Floating point values may be in 0..1, 0..255 or 0..65535.

    Raises:
        ValueError: for NaN, values out of range, or a mode that PIL cannot convert.
    """
    if image.mode not in _WIDE_MODES:
        return image if image.mode == "RGB" else image.convert("RGB")
    grey = np.array(image)
    low, high = float(grey.min()), float(grey.max())  # NaN goes through both
    if not 0 <= low <= high <= 65535:
        raise ValueRangeError(
            f'has mode "{image.mode}" and values from {low:g} to {high:g}; expected 8 or 16 bits. Scale it to 0..255 '
            "and convert it to mode L."
        )
    if image.mode == "F" and high <= 1:
        grey = grey * 255
    # Modes I and F do not say what depth the file had.
    elif image.mode not in ("I", "F") or high > 255:
        grey = grey / 257
    return PIL.Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _content(
    source: ImageFile, timeout: float | None, allow_urls: bool, allow_private_urls: bool
) -> Path | io.BytesIO | PIL.Image.Image:
    """What PIL can open, or an image that is open already."""
    if isinstance(source, PIL.Image.Image):
        return source
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "An image must be a path, a URL, a base64 string, the bytes of a file or a PIL image here, not "
            f"{type(source).__name__}."
        )
    if isinstance(source, str) and is_url(source):
        if not allow_urls:
            raise ValueError(f"{_name(source)} is refused: URLs are not allowed here. Pass the image itself.")
        return io.BytesIO(download_image(source, timeout, allow_private_urls))
    path = Path(source)
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, ValueError):  # a base64 string is too long for a file name
        is_folder = False
    if is_folder:
        raise IsADirectoryError(f"'{path}' is a folder; pass the path of an image in it.")
    decoded = _decode_base64(source) if isinstance(source, str) else None
    if decoded is None:
        raise FileNotFoundError(
            f"There is no image file {_shown(str(source))!r} (and it is not an http(s) URL or base64 image either)."
        )
    return io.BytesIO(decoded)


def _decode_base64(text: str) -> bytes | None:
    """The bytes of a base64 string or `data:image/` URL, or `None` when it is something else."""
    is_data = text.startswith("data:image/")
    try:
        content = base64.b64decode(text.partition(",")[2] if is_data else "".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        return None
    # Names like "street" can be read as base64 too, but not as an image.
    return content if is_data or len(content) >= 32 else None


class ValueRangeError(ValueError):
    """An image whose values are neither of 8 nor of 16 bits."""


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """PIL's errors with the file's name; its readers raise any kind of error for a damaged file."""
    try:
        yield
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that PIL can read; convert it to PNG or JPEG.") from error
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels: {error}; shrink it.") from error
    except ValueRangeError as error:
        raise ValueError(f"{name} {error}") from error
    except PermissionError:
        raise
    except Exception as error:
        raise ValueError(f"{name} is truncated or broken ({error}); fetch it again.") from error


def _opened(content: Path | io.BytesIO | PIL.Image.Image):
    # An image that was open before stays open.
    return nullcontext(content) if isinstance(content, PIL.Image.Image) else PIL.Image.open(content)


def _name(source: ImageFile) -> str:
    """The image in error messages."""
    if isinstance(source, bytes):
        return "The image in memory"
    if isinstance(source, PIL.Image.Image):
        file = getattr(source, "filename", "") or None
        return "The image object" if file is None else f"The image file '{file}'"
    if isinstance(source, str) and is_url(source):
        return f"The image at {_shown(source)}"
    return f"The image file '{_shown(str(source))}'"


def _shown(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


__all__ = ["ImageFile", "image_size", "open_image", "orientation_of", "to_rgb"]
