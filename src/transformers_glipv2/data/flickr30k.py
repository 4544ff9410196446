"""Flickr30k Entities: sentences with marked phrases, and boxes by the chain of phrases that mean the same thing.

The parser follows the data set's published format (Plummer et al., "Flickr30k Entities", ICCV 2015); coordinates are
left as the files have them, as the recall of the grounding papers takes them.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou

from transformers_glipv2.data.dataset import ImageDataset, ImageStream, make_dataset
from transformers_glipv2.data.files import read_text
from transformers_glipv2.data.schema import BoxReport, checked_objects

# A phrase opens with a word of its own: "[/EN#283585/people" or, of several types, "[/EN#283585/people/other".
_OPENING = re.compile(r"\[/EN#([^/\s]*)((?:/[^/\s]*)*)")


@dataclass(frozen=True)
class FlickrPhrase:
    """
    A marked phrase of a sentence.

    Attributes:
        text (`str`): its words.
        span (`tuple[int, int]`): its characters [start, end) in the sentence.
        first_word (`int`): its first word's position in the sentence.
        chain_id (`str`): phrases of an image with the same id mean the same; "0" means nothing visible.
        types (`tuple[str, ...]`): "people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene",
            "other", "notvisual".
    """

    text: str
    span: tuple[int, int]
    first_word: int
    chain_id: str
    types: tuple[str, ...]


@dataclass(frozen=True)
class FlickrSentence:
    """A sentence without its markup, and its phrases in order."""

    text: str
    phrases: tuple[FlickrPhrase, ...]


@dataclass(frozen=True)
class FlickrAnnotation:
    """
    The boxes of an image.

    Attributes:
        width, height (`int`): of the image, in pixels.
        boxes (`dict[str, list[list[int]]]`): x1, y1, x2, y2 in pixels as the file has them, by chain id.
        scene, no_box (`list[str]`): ids of chains that mean the whole scene, and of those that were given no box.
    """

    width: int
    height: int
    boxes: dict[str, list[list[int]]]
    scene: list[str]
    no_box: list[str]


def parse_sentence(line: str) -> FlickrSentence:
    """
    A line of `Sentences/ID.txt`.

    Words are parted by white space. A phrase closes only on a word that ends in "]"; one that never closes is no
    phrase, though its words stay.

    Args:
        line (`str`): for example "[/EN#1/people A man] waves ."

    Returns:
        `FlickrSentence`: "A man waves ." with the phrase "A man" of chain "1".
    """
    words: list[str] = []
    phrases: list[tuple[int, int, str, tuple[str, ...]]] = []
    opened: tuple[int, str, tuple[str, ...]] | None = None
    for word in line.split():
        opening = _OPENING.fullmatch(word) if opened is None else None
        if opening is not None:
            opened = (len(words), opening[1], tuple(opening[2].split("/")[1:]))
        elif opened is not None and word.endswith("]"):
            words.append(word[:-1])
            phrases.append((opened[0], len(words), *opened[1:]))
            opened = None
        else:
            words.append(word)
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    text = " ".join(words)
    return FlickrSentence(
        text,
        tuple(
            FlickrPhrase(
                text=text[starts[first] : starts[end] - 1],
                span=(starts[first], starts[end] - 1),
                first_word=first,
                chain_id=chain_id,
                types=types,
            )
            for first, end, chain_id, types in phrases
        ),
    )


def read_sentences(path: str | Path) -> list[FlickrSentence]:
    """The sentences of a file `Sentences/ID.txt`; empty lines are none."""
    return [parse_sentence(line) for line in read_text(path).split("\n") if line]


def read_annotation(path: str | Path) -> FlickrAnnotation:
    """
    A file `Annotations/ID.xml`. An object may name several chains, and a chain have several boxes.

    Raises:
        ValueError: when the file is no annotation of the data set.
    """
    try:
        root = ElementTree.parse(path).getroot()
        boxes: dict[str, list[list[int]]] = {}
        scene, no_box = [], []
        for entry in root.iter("object"):
            box = entry.find("bndbox")
            for chain_id in (name.text or "" for name in entry.iter("name")):
                if box is not None:
                    corners = [int(box.findtext(corner, "")) for corner in ("xmin", "ymin", "xmax", "ymax")]
                    boxes.setdefault(chain_id, []).append(corners)
                    continue
                if int(entry.findtext("nobndbox", "0")):
                    no_box.append(chain_id)
                if int(entry.findtext("scene", "0")):
                    scene.append(chain_id)
        width, height = (int(root.findtext(f"size/{side}", "")) for side in ("width", "height"))
        return FlickrAnnotation(width, height, boxes, scene, no_box)
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an annotation of Flickr30k Entities: {error}.") from error


def load_flickr30k(
    folder: str | Path,
    image_folder: str | Path,
    split: str = "train",
    *,
    policy: str | Mapping[str, str] = "skip",
    merge_boxes: bool = False,
    same_box_iou: float = 0.95,
    keep_empty: bool = True,
    streaming: bool = False,
) -> ImageDataset | ImageStream:
    """
    Grounding examples of Flickr30k Entities, one a sentence.

    Args:
        folder (`str` or `Path`): holds `Annotations/`, `Sentences/` and `train.txt`, `val.txt`, `test.txt`.
        image_folder (`str` or `Path`): holds `ID.jpg`.
        split (`str`, *optional*, defaults to `"train"`): the name of a list of image ids in the folder.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        merge_boxes (`bool`, *optional*, defaults to `False`): give a chain of several boxes the one around them all
            (the MERGED-BOXES protocol); else each is an object (ANY-BOX).
        same_box_iou (`float`, *optional*, defaults to 0.95): boxes of one sentence that overlap as much are one object
            with the phrases of both, as in the files that MDETR and GLIP were trained on; the first's corners stay.
        keep_empty (`bool`, *optional*, defaults to `True`): keep sentences without a box, as those files do.
        streaming (`bool`, *optional*, defaults to `False`): read files while examples are asked for.

    Returns:
        `ImageDataset` or `ImageStream`: examples with `sentence_id` (the sentence's position in its file) and objects
        of bbox, phrase (the first of the box's) and tokens_positive.

    Raises:
        FileNotFoundError: when there is no list of the split.
        ValueError: when the policy refuses.
    """
    folder, image_folder = Path(folder), Path(image_folder)
    if not (folder / f"{split}.txt").is_file():
        lists = ", ".join(sorted(path.stem for path in folder.glob("*.txt")))
        raise FileNotFoundError(f"no list of images at {folder / f'{split}.txt'}; lists found: {lists or 'none'}.")
    read = partial(_records, folder, image_folder, split, merge_boxes, same_box_iou, keep_empty)
    return make_dataset(read, BoxReport(policy, f"Flickr30k Entities {split}"), streaming=streaming)


def sentence_objects(
    sentence: FlickrSentence, boxes: Mapping[str, Sequence[Sequence[float]]], same_box_iou: float = 0.95
) -> dict[str, list[Any]]:
    """
    The objects that a sentence speaks of.

    Args:
        sentence (`FlickrSentence`): its phrases without a box give nothing.
        boxes (`Mapping[str, Sequence]`): x1, y1, x2, y2 in pixels, by chain id.
        same_box_iou (`float`, *optional*, defaults to 0.95): see `load_flickr30k`.

    Returns:
        `dict[str, list]`: columns bbox (x, y, width, height), phrase, tokens_positive (all phrases of the box).
    """
    named = [(box, phrase) for phrase in sentence.phrases for box in boxes.get(phrase.chain_id, ())]
    overlaps = torch.tensor([box for box, _ in named], dtype=torch.float64).reshape(-1, 4)
    same = (box_iou(overlaps, overlaps) >= same_box_iou).tolist()
    objects: dict[str, list[Any]] = {"bbox": [], "phrase": [], "tokens_positive": []}
    firsts: list[int] = []
    for index, ((x1, y1, x2, y2), phrase) in enumerate(named):
        position = next((position for position, first in enumerate(firsts) if same[index][first]), None)
        if position is None:
            firsts.append(index)
            objects["bbox"].append([float(x1), float(y1), float(x2 - x1), float(y2 - y1)])
            objects["phrase"].append(phrase.text)
            objects["tokens_positive"].append([list(phrase.span)])
        elif list(phrase.span) not in objects["tokens_positive"][position]:
            objects["tokens_positive"][position].append(list(phrase.span))
    return objects


def enclosing_box(boxes: Sequence[Sequence[int]]) -> list[int]:
    """x1, y1, x2, y2 around all of the boxes."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return [min(x1), min(y1), max(x2), max(y2)]


def _records(
    folder: Path,
    image_folder: Path,
    split: str,
    merge_boxes: bool,
    same_box_iou: float,
    keep_empty: bool,
    report: BoxReport,
) -> Iterator[dict[str, Any]]:
    for image in read_text(folder / f"{split}.txt").split():
        try:
            annotation = read_annotation(folder / "Annotations" / f"{image}.xml")
            sentences = read_sentences(folder / "Sentences" / f"{image}.txt")
        except (OSError, ValueError) as error:
            report.add("bad_entry", f"image {image}: {error}")
            continue
        boxes = annotation.boxes
        if merge_boxes:
            boxes = {chain_id: [enclosing_box(several)] for chain_id, several in boxes.items()}
        size = (annotation.width, annotation.height)
        for number, sentence in enumerate(sentences):
            where = f"image {image}, sentence {number}"
            if not sentence.text.strip():
                report.add("empty_text", where)
                continue
            objects = sentence_objects(sentence, boxes, same_box_iou)
            objects = checked_objects(objects, *size, report, where, text=sentence.text)
            if keep_empty or objects["bbox"]:
                yield {
                    "kind": "grounding",
                    "image_id": int(image) if image.isdecimal() else image,
                    "image_path": str(image_folder / f"{image}.jpg"),
                    "width": size[0],
                    "height": size[1],
                    "text": sentence.text,
                    "sentence_id": number,
                    "objects": objects,
                }
