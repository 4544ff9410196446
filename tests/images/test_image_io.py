"""Images are opened in one way: upright, whole, 8-bit RGB; what cannot be opened is named."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.GifImagePlugin
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import pytest

from tests.tiny_detector import natural_image
from transformers_glipv2.images.image_io import image_size, open_image


def png_of_zeros(width: int, height: int) -> bytes:
    """A file of kilobytes that unpacks to `width * height` pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(path: Path, image: PIL.Image.Image, orientation: int | None = None) -> Path:
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def pixels(image: PIL.Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.array(image)


def test_every_form_of_an_image(tmp_path):
    image = natural_image(20, 30)
    path = saved(tmp_path / "whole.png", image)
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    for source in (path, str(path), content, image, text, f"data:image/png;base64,{text}"):
        assert np.array_equal(pixels(open_image(source)), np.array(image))
        assert image_size(source) == (30, 20)
    with PIL.Image.open(path) as opened:
        open_image(opened)
        assert image_size(opened) == (30, 20)
        assert opened.load() is not None, "an image that was open stays open"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation):
    stored = natural_image(20, 30)
    path = saved(tmp_path / "turned.jpg", stored, orientation)
    with PIL.Image.open(path) as opened:
        upright, as_stored = PIL.ImageOps.exif_transpose(opened), np.array(opened)
    for source in (path, path.read_bytes(), PIL.Image.open(path)):
        image = open_image(source)
        assert np.array_equal(pixels(image), np.array(upright))
        assert image_size(source) == image.size == ((20, 30) if orientation >= 5 else (30, 20))
    assert np.array_equal(pixels(open_image(path, upright=False)), as_stored)
    assert np.array_equal(pixels(open_image(open_image(path))), np.array(upright)), "turned once"


def test_damaged_exif_is_no_orientation(tmp_path):
    image = natural_image(20, 30)
    image.save(tmp_path / "bad.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\xff")
    assert np.array_equal(pixels(open_image(tmp_path / "bad.png")), np.array(image))


GREY = np.arange(256, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (GREY * 257, "png"),
        (GREY * 257, "tif"),
        ((GREY * 257).astype(np.int32), "tif"),
        (GREY.astype(np.int32), "tif"),
        (GREY.astype(np.float32), "tif"),
        ((GREY / 255).astype(np.float32), "tif"),
        ((GREY * 257.0).astype(np.float32), "tif"),
    ],
)
def test_wide_images_are_scaled(tmp_path, values, suffix):
    path = tmp_path / f"wide.{suffix}"
    image = PIL.Image.fromarray(values)
    image.save(path)
    expected = np.repeat(GREY.astype(np.uint8)[..., None], 3, axis=2)
    for source in (path, path.read_bytes(), image):
        assert np.array_equal(pixels(open_image(source)), expected)


def test_values_out_of_range(tmp_path):
    for name, values in {"deep": np.full((4, 4), 70000, np.int32), "nan": np.full((4, 4), np.nan, np.float32)}.items():
        PIL.Image.fromarray(values).save(tmp_path / f"{name}.tif")
        with pytest.raises(ValueError, match=rf"{name}\.tif' has mode"):
            open_image(tmp_path / f"{name}.tif")


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_the_first_frame_is_read(tmp_path, monkeypatch):
    frames = [PIL.Image.new("P", (40, 30), index % 256) for index in range(3000)]
    frames[0].putpalette([200, 10, 20] * 256)
    frames[0].save(tmp_path / "long.gif", save_all=True, append_images=frames[1:], duration=20, loop=0)
    sought, seek = set(), PIL.GifImagePlugin.GifImageFile.seek
    monkeypatch.setattr(
        PIL.GifImagePlugin.GifImageFile, "seek", lambda gif, frame: sought.add(frame) or seek(gif, frame)
    )
    image = open_image(tmp_path / "long.gif")
    assert sought <= {0}
    assert image.size == (40, 30) and image.getpixel((0, 0)) == (200, 10, 20)
    pages = [natural_image(20, 30), natural_image(30, 20)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(pixels(open_image(tmp_path / "pages.tif")), np.array(pages[0]))


def test_decompression_bombs_are_named(tmp_path, monkeypatch):
    """Before any pixel of them is decoded."""
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("the bomb was decoded"))
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_zeros(30000, 30000))
    assert path.stat().st_size < 200_000
    for reader in (open_image, image_size):
        with pytest.raises(ValueError, match=r"bomb\.png' has too many pixels"):
            reader(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tif"])
def test_damaged_files_are_named(tmp_path, suffix):
    """Cut at many lengths, and with bytes changed: an error with the name, or an image, and nothing else."""
    natural_image(40, 50).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in np.linspace(0, len(whole) - 1, 25).astype(int)]
    for _ in range(25):
        changed = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 4):
            changed[place] = int(rng.integers(256))
        damaged.append(bytes(changed))
    errors = 0
    for index, content in enumerate(damaged):
        path = tmp_path / f"cut{index}.{suffix}"
        path.write_bytes(content)
        try:
            image = open_image(path)
        except (OSError, ValueError) as error:
            errors += 1
            assert f"cut{index}.{suffix}" in str(error)
        else:
            assert image.mode == "RGB"
    assert errors > 5
    with pytest.raises(ValueError, match=r"image in memory.*(truncated|not an image)"):
        open_image(whole[: len(whole) // 3])


def test_what_is_no_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg"):
        open_image(tmp_path / "absent.jpg")
    with pytest.raises(FileNotFoundError, match="no image file 'street'"):
        open_image("street")
    with pytest.raises(FileNotFoundError, match=r"no image file '(long-)+\.\.\.'"):
        open_image("long-" * 10000)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match=r"base64,AAAA.* is not an image"):
        open_image("data:image/png;base64,AAAA")
    for wrong in (np.zeros((4, 4, 3), np.uint8), None, 5):
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}"):
            open_image(wrong)


def test_an_image_object_that_cannot_be_read(tmp_path):
    content = io.BytesIO()
    natural_image().save(content, "png")
    (tmp_path / "cut.png").write_bytes(content.getvalue()[:300])
    with PIL.Image.open(tmp_path / "cut.png") as image, pytest.raises(ValueError, match=r"cut\.png' is truncated"):
        open_image(image)
