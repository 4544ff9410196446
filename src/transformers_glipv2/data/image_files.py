"""Where the images of an annotation file are, and how large they are."""

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from transformers_glipv2.data.schema import BoxReport
from transformers_glipv2.images.image_io import image_size

_UNUSUAL = re.compile(r"^/|//|\./|\\")


class ImageFinder:
    """
    Finds the image of a `file_name`: in the folder under the whole name, or without the leading folders of the name.

    Publishers write "train/1.jpg", "images/v1/patch0/1.jpg" or "1.jpg" for images that users keep in one folder;
    how much of the name counts is decided by the first file that exists. Backslashes separate folders too.

    Args:
        folder (`str` or `Path`): of the images.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): also open files outside of the folder, which
            absolute names, names with ".." and links lead to. Only for annotation files that are trusted.

    Attributes:
        asked (`int`), found (`int`), missing (`int`): images that were looked for, that exist, and that do not.
        first_missing (`str` or `None`): where the first that does not exist should be.
    """

    def __init__(self, folder: str | Path, allow_outside_paths: bool = False):
        self.folder = str(folder)
        self.allow_outside_paths = allow_outside_paths
        self.skipped_parts: int | None = None
        self.asked = self.found = self.missing = 0
        self.first_missing: str | None = None
        self._root = os.path.realpath(self.folder)
        self._parents: dict[str, bool] = {}

    def __call__(self, file_name: str, report: BoxReport, where: str) -> str | None:
        """
        The path of an image; of one that does not exist, where it should be.

        Args:
            file_name (`str`): as the annotation file has it.
            report (`BoxReport`): counts names that lead out of the folder.
            where (`str`): the entry, for messages.

        Returns:
            `str | None`: `None` where the image is left out.
        """
        self.asked += 1
        path, leads_out = self._existing(file_name)
        if path is not None:
            self.found += 1
            return path
        missing = os.path.join(self.folder, file_name)
        if leads_out or not self._is_allowed(missing):
            report.add("outside_path", f"{where}, file name {file_name[:200]!r}")
            return None
        self.missing += 1
        self.first_missing = self.first_missing or missing
        return missing

    def exists(self, file_name: str) -> bool:
        """Whether there is an image of this name that may be opened; it is not counted."""
        return self._existing(file_name)[0] is not None

    def check_any_found(self, name: str | Path) -> None:
        """Raises FileNotFoundError when images were looked for and none exists; `name` is the annotation file's."""
        if self.asked and not self.found and self.first_missing is not None:
            raise FileNotFoundError(
                f"none of the {self.asked} images of {name} is in {self.folder}: there is no {self.first_missing}. "
                "Pass the folder that their file names start from as `image_folder`."
            )

    def _existing(self, file_name: str) -> tuple[str | None, bool]:
        """A file that exists and is allowed, else `None` and whether one exists that is not."""
        usual = self._usual(file_name)
        if usual is not None:
            return usual, False
        leads_out = False
        names = (file_name, file_name.replace("\\", "/")) if "\\" in file_name else (file_name,)
        for name in names:
            parts = Path(name).parts
            skips = list(range(len(parts)))
            if self.skipped_parts is not None:
                skips.insert(0, min(self.skipped_parts, len(parts) - 1))
            for skipped in skips:
                path = os.path.join(self.folder, *parts[skipped:])
                if os.path.isfile(path):
                    if self._is_allowed(path):
                        self.skipped_parts = skipped
                        return path, False
                    leads_out = True
        return None, leads_out

    def _usual(self, file_name: str) -> str | None:
        """The file under a whole, plain name, where such names have been right and it is no link: one look tells."""
        if self.skipped_parts != 0 or _UNUSUAL.search(file_name):
            return None
        path = os.path.join(self.folder, file_name)
        try:
            is_file = stat.S_ISREG(os.lstat(path).st_mode)
        except (OSError, ValueError):
            return None
        return path if is_file and (self.allow_outside_paths or self._is_in_root(path)) else None

    def _is_in_root(self, path: str) -> bool:
        """Whether a file that is no link is in the folder; thousands of images have one parent."""
        parent = os.path.dirname(path)
        is_in = self._parents.get(parent)
        if is_in is None:
            is_in = (os.path.realpath(parent) + os.sep).startswith(self._root.rstrip(os.sep) + os.sep)
            self._parents[parent] = is_in
        return is_in

    def _is_allowed(self, path: str) -> bool:
        if self.allow_outside_paths:
            return True
        try:
            return os.path.realpath(path).startswith(self._root.rstrip(os.sep) + os.sep)
        except (OSError, ValueError):
            return False


def annotated_size(
    width: int | None, height: int | None, path: Callable | str | bytes, report: BoxReport, where: str
) -> tuple[int, int] | None:
    """
    Width and height of an image in pixels: as the annotations give them, else those of the upright image.

    Args:
        width, height (`int` or `None`): of the annotations.
        path (`str`, `bytes` or a function that gives one): the image, of which only the head is read.
        report (`BoxReport`): counts images that cannot be read.
        where (`str`): the image, for messages.

    Returns:
        `tuple[int, int] | None`: `None` where the image cannot be read.
    """
    if width and height:
        return width, height
    try:
        return image_size(path() if callable(path) else path)
    except (OSError, ValueError) as error:
        report.add("unreadable_image", f"{where}: {error}")
        return None
