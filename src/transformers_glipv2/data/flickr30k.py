"""Flickr30k Entities: sentences with marked phrases, and boxes by the chain of phrases that mean the same thing.

The parser follows the data set's published format (Plummer et al., "Flickr30k Entities", ICCV 2015); coordinates are
left as the files have them, as the recall of the grounding papers takes them.
"""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

# A phrase opens with a word of its own: "[/EN#283585/people" or, of several types, "[/EN#283585/people/other".
_OPENING = re.compile(r"\[/EN#([^/\s]*)((?:/[^/\s]*)*)")


@dataclass(frozen=True)
class FlickrPhrase:
    """
    A marked phrase of a sentence.

    Attributes:
        text (`str`): its words.
        span (`tuple[int, int]`): its characters [start, end) in the sentence.
        first_word (`int`): its first word's place in the sentence.
        chain_id (`str`): phrases of a picture with the same id mean the same; "0" means nothing visible.
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
    The boxes of a picture.

    Attributes:
        width, height (`int`): of the picture, in pixels.
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
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [parse_sentence(line) for line in lines if line]


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
            for chain_id in (name.text for name in entry.iter("name")):
                if box is not None:
                    corners = [int(box.findtext(corner)) for corner in ("xmin", "ymin", "xmax", "ymax")]
                    boxes.setdefault(chain_id, []).append(corners)
                    continue
                if int(entry.findtext("nobndbox", "0")):
                    no_box.append(chain_id)
                if int(entry.findtext("scene", "0")):
                    scene.append(chain_id)
        size = root.find("size")
        return FlickrAnnotation(int(size.findtext("width")), int(size.findtext("height")), boxes, scene, no_box)
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an annotation of Flickr30k Entities: {error}.") from error
