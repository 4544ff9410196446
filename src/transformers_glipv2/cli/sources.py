"""The images that a command is given: files, folders and URLs."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from transformers_glipv2.data.files import printable
from transformers_glipv2.images.image_download import is_url
from transformers_glipv2.images.image_io import open_image


class ImageFolder:
    """
    The images under a folder, by their paths in it.

    Args:
        folder (`Path`): searched with all folders in it.

    Attributes:
        names (`list[str]`): paths in the folder, sorted; bytes that are not UTF-8 are written as `\\xe9`.
        files (`dict[str, Path]`): where each is.

    Raises:
        ValueError: when there is no image.
    """

    def __init__(self, folder: Path):
        Image.init()
        known = set(Image.registered_extensions())
        paths = (path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
        self.paths = sorted(str(path.relative_to(folder)) for path in paths)
        if not self.paths:
            raise ValueError(
                f"{str(folder)!r} holds no image files (.jpg, .png and so on); pass the folder of images."
            )
        self.folder = folder
        self.names = [printable(path) for path in self.paths]
        self.files = {name: folder / path for name, path in zip(self.names, self.paths, strict=True)}

    def open(self, index: int) -> Image.Image:
        """An image as RGB, upright."""
        return open_image(self.folder / self.paths[index])


@dataclass
class ImageToOpen:
    """
    An image that was named on the command line, or that is in a folder that was.

    Attributes:
        name (`str`): as it was named.
        source (`str` or `Path`): what [`open_image`] opens.
        drawing (`Path`): relative path of its drawing in a folder of drawings.
    """

    name: str
    source: str | Path
    drawing: Path

    def open(self, allow_private_urls: bool = False) -> Image.Image:
        """The image as RGB, upright; raises as [`open_image`]."""
        return open_image(self.source, allow_private_urls=allow_private_urls)


@contextmanager
def sample_file() -> Iterator[Path]:
    """The photograph that comes with the package: NASA's of the astronaut Eileen Collins, public domain."""
    # The package may be in an archive; a drawing is named after the file.
    with as_file(files("transformers_glipv2.cli") / "samples" / "astronaut.jpg") as file:
        yield file


def sample_image() -> Image.Image:
    """The image of [`sample_file`]."""
    with sample_file() as file:
        return open_image(file)


def find_images(values: Sequence[str]) -> list[ImageToOpen]:
    """
    The images of a command line.

    Args:
        values (`Sequence[str]`): files, folders (searched with all folders in them) and http(s) URLs.

    Raises:
        ValueError: for a folder without images.
    """
    found = list(_each(values))
    taken: set[Path] = set()
    for image in found:
        first, number = image.drawing, 1
        while image.drawing in taken:
            number += 1
            image.drawing = first.with_name(f"{first.stem}-{number}{first.suffix}")
        taken.add(image.drawing)
    return found


def _each(values: Sequence[str]) -> Iterator[ImageToOpen]:
    for value in values:
        if is_url(value):
            stem = Path(unquote(urlsplit(value).path)).stem
            yield ImageToOpen(value, value, Path(re.sub(r"[^\w.-]+", "_", stem) or "image").with_suffix(".png"))
            continue
        path = Path(value)
        if path.is_dir():
            folder = ImageFolder(path)
            for name, relative in zip(folder.names, folder.paths, strict=True):
                yield ImageToOpen(str(path / name), path / relative, Path(relative).with_suffix(".png"))
        else:
            yield ImageToOpen(value, path, Path(path.name).with_suffix(".png"))


class ImageList:
    """
    The images of a command line, as [`find_images`] finds them.

    Attributes:
        names (`list[str]`): as they were named.
        files (`dict[str, Path]`): where those are that are no URLs.
    """

    def __init__(self, values: Sequence[str]):
        self.images = find_images(values)
        self.names = [image.name for image in self.images]
        self.files = {image.name: image.source for image in self.images if isinstance(image.source, Path)}

    def open(self, index: int) -> Image.Image:
        """An image as RGB, upright."""
        return self.images[index].open()
