"""What the commands for single images share: they read images, ask a `Detector`, print, and draw."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import typer
from PIL import Image
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.checks import OutputFolder, OutputImage
from transformers_glipv2.cli.devices import pick_device
from transformers_glipv2.cli.results import Found, objects_json, print_objects, save_drawing
from transformers_glipv2.cli.sources import ImageToOpen, find_images
from transformers_glipv2.inference.batch_size import MOST_IMAGES
from transformers_glipv2.inference.detector import Detector

# From images to a result for each, in order.
Ask = Callable[[list[Image.Image]], Iterable[Any]]


@dataclass
class Shown:
    """
    What is shown of an image.

    Attributes:
        objects (`Sequence[Found]`): the highest-scoring first.
        lines (`Sequence[str]`): printed above the objects.
        fields (`Mapping[str, Any]`): further ones of the JSON object.
        title (`str`, *optional*): written into the drawing's upper left corner.
    """

    objects: Sequence[Found]
    lines: Sequence[str] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None


def load_detector(model_class: type[PreTrainedModel], model: str, device: str, **options: Any) -> Detector:
    """A `Detector` with a checkpoint's weights; `options` as there."""
    if not sys.stderr.isatty():
        disable_progress_bar()
    picked = pick_device(device, options.get("backend", "torch"))
    return Detector(*load_checkpoint(model_class, model, picked), progress=False, **options)


class Report:
    """
    Prints results and writes drawings, as the options of a command say.

    Args:
        images (`Sequence[str]`): files, folders and URLs.
        command (`str`): names the default folder of drawings.
        output (`Path`, *optional*): of one image the drawing, else a folder.
        as_json (`bool`): print JSON lines and nothing else.
        threshold (`float`): named where nothing was found.
        allow_private_urls (`bool`): as of [`open_image`].

    Raises:
        ValueError: for images that are not there, or an output that cannot be written.
    """

    def __init__(
        self,
        images: Sequence[str],
        command: str,
        output: Path | None,
        as_json: bool,
        threshold: float,
        allow_private_urls: bool = False,
    ):
        self.images = find_images(images)
        self.as_json = as_json
        self.threshold = threshold
        self.allow_private_urls = allow_private_urls
        self.failures = 0
        self.file: Path | None = None
        self.folder = None if as_json else Path("outputs", command)
        if output is not None:
            self.folder = None
            if output.suffix and not output.is_dir():
                if len(self.images) > 1:
                    raise ValueError(
                        f"--output is {str(output)!r}, one file for {len(self.images)} images; pass a folder."
                    )
                OutputImage(output).check("--output")
                self.file = output
            else:
                OutputFolder(output).check("--output")
                self.folder = output

    def run(self, ask: Ask, show: Callable[[Any], Shown], batch_size: int | str = 1) -> None:
        """
        Asks for all images, and prints and draws each result as it comes.

        Args:
            ask (`Callable`): from a list of images to results in their order.
            show (`Callable`): from a result to what is shown of it.
            batch_size (`int` or `"auto"`): images asked for at once, and in memory; `"auto"`: 32.

        Raises:
            ValueError, OSError: when the only image cannot be read, or none can.
            typer.Exit: with code 1 at the end, when some images could not be read.
        """
        opened = self._opened()
        bar = tqdm(total=len(self.images), unit="image", disable=len(self.images) == 1 or not sys.stderr.isatty())
        with bar:
            most = MOST_IMAGES if isinstance(batch_size, str) else batch_size
            while batch := list(islice(opened, most)):
                for (image, pixels), result in zip(batch, ask([pixels for _, pixels in batch]), strict=True):
                    self._add(image, pixels, show(result))
                bar.update(len(batch))
        if self.failures:
            sys.stderr.write(f"{self.failures} of {len(self.images)} images could not be read and were left out.\n")
            raise typer.Exit(1)

    def _opened(self) -> Iterator[tuple[ImageToOpen, Image.Image]]:
        for image in self.images:
            try:
                pixels = image.open(self.allow_private_urls)
            except (ValueError, OSError) as error:
                self.failures += 1
                if self.failures == len(self.images):
                    raise
                sys.stderr.write(f"{image.name}: {' '.join(str(error).split())}\n")
                continue
            yield image, pixels

    def _add(self, image: ImageToOpen, pixels: Image.Image, shown: Shown) -> None:
        drawing = self.file if self.folder is None else self.folder / image.drawing
        if self.as_json:
            size = {"width": pixels.width, "height": pixels.height}
            print(json.dumps({"image": image.name, **size, **shown.fields, "objects": objects_json(shown.objects)}))
        else:
            if len(self.images) > 1:
                print(f"{image.name}:")
            print(*shown.lines, sep="\n", end="\n" if shown.lines else "")
            print_objects(shown.objects, self.threshold)
        if drawing is not None:
            save_drawing(pixels, shown.objects, drawing, shown.title)
            if not self.as_json:
                print(f"Wrote {drawing}.")
