"""
ODinW, "object detection in the wild": 13 and 35 data sets from Roboflow (Li et al., "GLIP", CVPR 2022; "ELEVATER",
NeurIPS 2022), their classes and published prompts, and their tables.

Class names and their order, folders, splits and prompts were compared, set by set, with GLIP's 35 configurations
(`configs/odinw_35` of microsoft/GLIP, revision 91f2092). Each lists its categories. Four have a prompt (Aquarium,
EgoHands generic, Packages, pothole); the others are asked for by their list.

The 13 are the sets of `configs/odinw_13` (seven files read at revision f91be1a, the rest in MQ-Det's copy), but asked
for as in `odinw_35`. Those 13 files differ in six sets: they have no prompts, and say "Cottontail-Rabbit", "CoW" and
"chanterelle" for "rabbit", "flat mushroom" and "yellow mushroom".
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers_glipv2.prompts import LABEL_SEPARATOR, clean_labels

ANNOTATIONS = "annotations_without_background.json"


@dataclass(frozen=True)
class ODinWSet:
    """
    One data set.

    Attributes:
        name (`str`): as in the published tables.
        folder (`str`): under the folder of all data sets.
        classes (`tuple[str | None, ...]`): names of the category ids 1, 2, ... in prompts; `None` is not asked for
            (in ChessPieces the published name of class 1 is blank).
        prompt (`tuple[tuple[str, str, str], ...]`, *optional*): what stands before each class, its words, and what
            stands after, where the published prompt is more than a list of names.
        export (`bool`): images of all splits lie in one folder, beside a json a split.
        test_folder (`str`): of the images that are tested; in PascalVOC, which has no others, those of "valid".
    """

    name: str
    folder: str
    classes: tuple[str | None, ...]
    prompt: tuple[tuple[str, str, str], ...] | None = None
    export: bool = False
    test_folder: str = "test"

    def annotation_file(self, root: str | Path, split: str = "test") -> Path:
        """The json of a split ("train", "val" or "test") under the folder of all data sets."""
        if split not in ("train", "val", "test"):
            raise ValueError(f"`split` is {split!r}; choose train, val or test.")
        folder = Path(root) / self.folder
        if self.export:
            return folder / f"{split}_{ANNOTATIONS}"
        return folder / {"train": "train", "val": "valid", "test": self.test_folder}[split] / ANNOTATIONS

    @property
    def category_ids(self) -> list[int]:
        """Of the classes that are asked for."""
        return [index for index, name in enumerate(self.classes, start=1) if name is not None]

    @property
    def labels(self) -> list[str]:
        """The names of the classes that are asked for, as they are written in a plain prompt."""
        return clean_labels([name for name in self.classes if name is not None])

    def sentence(self) -> tuple[str, list[tuple[int, int]]] | None:
        """
        The published prompt: its text and the characters [start, end) of each class; `None` where the published prompt
        is the plain list of names.
        """
        if self.prompt is None:
            return None
        text = ""
        spans: list[tuple[int, int]] = []
        for before, name, after in self.prompt:
            text += (LABEL_SEPARATOR if spans else "") + before
            spans.append((len(text), len(text) + len(name)))
            text += name + after
        return text, spans


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


_FONTS = (
    "American Typewriter|Andale Mono|Apple Chancery|Arial|Avenir|Baskerville|Big Caslon|Bradley Hand|Brush Script MT|"
    "Chalkboard|Comic Sans MS|Copperplate|Courier|Didot|Futura|Geneva|Georgia|Gill Sans|Helvetica|Herculanum|Impact|"
    "Kefa|Lucida Grande|Luminari|Marker Felt|Menlo|Monaco|Noteworthy|Optima|PT Sans|PT Serif|Palatino|Papyrus|"
    "Phosphate|Rockwell|SF Pro|SignPainter|Skia|Snell Roundhand|Tahoma|Times New Roman|Trebuchet MS|Verdana"
)
_BREEDS = (
    "cat-Abyssinian|cat-Bengal|cat-Birman|cat-Bombay|cat-British_Shorthair|cat-Egyptian_Mau|cat-Maine_Coon|"
    "cat-Persian|cat-Ragdoll|cat-Russian_Blue|cat-Siamese|cat-Sphynx|dog-american_bulldog|"
    "dog-american_pit_bull_terrier|dog-basset_hound|dog-beagle|dog-boxer|dog-chihuahua|dog-english_cocker_spaniel|"
    "dog-english_setter|dog-german_shorthaired|dog-great_pyrenees|dog-havanese|dog-japanese_chin|dog-keeshond|"
    "dog-leonberger|dog-miniature_pinscher|dog-newfoundland|dog-pomeranian|dog-pug|dog-saint_bernard|dog-samoyed|"
    "dog-scottish_terrier|dog-shiba_inu|dog-staffordshire_bull_terrier|dog-wheaten_terrier|dog-yorkshire_terrier"
)
_PLANTS = (
    "Apple Scab Leaf|Apple leaf|Apple rust leaf|Bell_pepper leaf|Bell_pepper leaf spot|Blueberry leaf|Cherry leaf|"
    "Corn Gray leaf spot|Corn leaf blight|Corn rust leaf|Peach leaf|Potato leaf|Potato leaf early blight|"
    "Potato leaf late blight|Raspberry leaf|Soyabean leaf|Soybean leaf|Squash Powdery mildew leaf|Strawberry leaf|"
    "Tomato Early blight leaf|Tomato Septoria leaf spot|Tomato leaf|Tomato leaf bacterial spot|"
    "Tomato leaf late blight|Tomato leaf mosaic virus|Tomato leaf yellow virus|Tomato mold leaf|"
    "Tomato two spotted spider mites leaf|grape leaf|grape leaf black rot"
)
_TRAFFIC = (
    "biker|car|pedestrian|trafficLight|trafficLight-Green|trafficLight-GreenLeft|trafficLight-Red|"
    "trafficLight-RedLeft|trafficLight-Yellow|trafficLight-YellowLeft|truck"
)
_CHESS = (
    "black bishop|black king|black knight|black pawn|black queen|black rook|white bishop|white king|white knight|"
    "white pawn|white queen|white rook"
)
# The blank name of class 1 leaves its full stop in the published prompt.
_CHESS_PROMPT = tuple((" . " if index == 0 else "", name, "") for index, name in enumerate(_names(_CHESS)))
_VOC = (
    "aeroplane|bicycle|bird|boat|bottle|bus|car|cat|chair|cow|diningtable|dog|horse|motorbike|person|pottedplant|"
    "sheep|sofa|train|tvmonitor"
)
_BOGGLE = "Q|a|an|b|c|d|e|er|f|g|h|he|i|in|j|k|l|m|n|o|o |p|q|qu|r|s|t|t\\|th|u|v|w|wild|x|y|z"
_AQUARIUM_PROMPT = (
    (" ", "fish", ""),
    ("", "jellyfish", ""),
    ("", "penguin", " , which is black and white"),
    ("", "puffin", " with orange beaks "),
    ("", "shark", ""),
    ("", "starfish", ""),
    ("", "stingray", " which is flat and round"),
)
_MUSHROOMS = "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco"
_LETTERS = "AmericanSignLanguageLetters/American Sign Language Letters.v1-v1.coco"

ODINW_35: dict[str, ODinWSet] = {
    entry.name: entry
    for entry in (
        ODinWSet("AerialMaritimeDrone_large", "AerialMaritimeDrone/large", _names("boat|car|dock|jetski|lift")),
        ODinWSet("AerialMaritimeDrone_tiled", "AerialMaritimeDrone/tiled", _names("boat|car|dock|jetski|lift")),
        ODinWSet("AmericanSignLanguageLetters", _LETTERS, tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
        ODinWSet(
            "Aquarium",
            "Aquarium/Aquarium Combined.v2-raw-1024.coco",
            _names("fish|jellyfish|penguin|puffin|shark|starfish|stingray"),
            prompt=_AQUARIUM_PROMPT,
        ),
        ODinWSet("BCCD", "BCCD/BCCD.v3-raw.coco", _names("Platelets|RBC|WBC")),
        ODinWSet(
            "ChessPieces",
            "ChessPieces/Chess Pieces.v23-raw.coco",
            (None, *_names(_CHESS)),
            prompt=_CHESS_PROMPT,
        ),
        ODinWSet("CottontailRabbits", "CottontailRabbits", ("rabbit",)),
        ODinWSet(
            "DroneControl",
            "DroneControl/Drone Control.v3-raw.coco",
            _names("follow|follow_hand|land|land_hand|null|object|takeoff|takeoff-hand"),
        ),
        ODinWSet("EgoHands_generic", "EgoHands/generic", ("hand",), prompt=((" ", "hand", " of a person"),)),
        ODinWSet("EgoHands_specific", "EgoHands/specific", _names("myleft|myright|yourleft|yourright")),
        ODinWSet("HardHatWorkers", "HardHatWorkers/raw", _names("head|helmet|person")),
        ODinWSet("MaskWearing", "MaskWearing/raw", _names("mask|no-mask")),
        ODinWSet("MountainDewCommercial", "MountainDewCommercial", ("bottle",)),
        ODinWSet("NorthAmericaMushrooms", _MUSHROOMS, _names("flat mushroom|yellow mushroom")),
        ODinWSet("OxfordPets_by-breed", "OxfordPets/by-breed", _names(_BREEDS)),
        ODinWSet("OxfordPets_by-species", "OxfordPets/by-species", _names("cat|dog")),
        ODinWSet("PKLot", "PKLot/640", _names("space-empty|space-occupied")),
        ODinWSet("Packages", "Packages/Raw", ("package",), prompt=(("there is a ", "package", " on the porch"),)),
        ODinWSet("PascalVOC", "PascalVOC", _names(_VOC), test_folder="valid"),
        ODinWSet("Raccoon", "Raccoon/Raccoon.v2-raw.coco", ("raccoon",)),
        ODinWSet("ShellfishOpenImages", "ShellfishOpenImages/raw", _names("Crab|Lobster|Shrimp")),
        ODinWSet("ThermalCheetah", "ThermalCheetah", _names("cheetah|human")),
        ODinWSet("UnoCards", "UnoCards/raw", _names("0|1|2|3|4|5|6|7|8|9|10|11|12|13|14")),
        ODinWSet("VehiclesOpenImages", "VehiclesOpenImages/416x416", _names("Ambulance|Bus|Car|Motorcycle|Truck")),
        ODinWSet("WildfireSmoke", "WildfireSmoke", ("smoke",)),
        ODinWSet("boggleBoards", "boggleBoards/416x416AutoOrient/export", _names(_BOGGLE), export=True),
        ODinWSet(
            "brackishUnderwater",
            "brackishUnderwater/960x540",
            _names("crab|fish|jellyfish|shrimp|small_fish|starfish"),
        ),
        ODinWSet("dice", "dice/mediumColor/export", _names("1|2|3|4|5|6"), export=True),
        ODinWSet("openPoetryVision", "openPoetryVision/512x512", _names(_FONTS)),
        ODinWSet("pistols", "pistols/export", ("pistol",), export=True),
        ODinWSet("plantdoc", "plantdoc/416x416", _names(_PLANTS)),
        ODinWSet("pothole", "pothole", ("pothole",), prompt=(("there are some ", "holes", " on the road"),)),
        ODinWSet("selfdrivingCar", "selfdrivingCar/fixedLarge/export", _names(_TRAFFIC), export=True),
        ODinWSet("thermalDogsAndPeople", "thermalDogsAndPeople", _names("dog|person")),
        ODinWSet(
            "websiteScreenshots",
            "websiteScreenshots",
            _names("button|field|heading|iframe|image|label|link|text"),
        ),
    )
}

_THIRTEEN = (
    "AerialMaritimeDrone_large",
    "Aquarium",
    "CottontailRabbits",
    "EgoHands_generic",
    "NorthAmericaMushrooms",
    "Packages",
    "PascalVOC",
    "pistols",
    "pothole",
    "Raccoon",
    "ShellfishOpenImages",
    "thermalDogsAndPeople",
    "VehiclesOpenImages",
)
ODINW_13: dict[str, ODinWSet] = {name: ODINW_35[name] for name in _THIRTEEN}


def odinw_sets(which: str | Iterable[str]) -> dict[str, ODinWSet]:
    """
    Data sets by name.

    Args:
        which (`str` or `Iterable[str]`): "13", "35", or names.

    Raises:
        ValueError: for an unknown name.
    """
    if which in ("13", "35"):
        return dict(ODINW_13 if which == "13" else ODINW_35)
    names = [which] if isinstance(which, str) else list(which)
    unknown = [name for name in names if name not in ODINW_35]
    if unknown:
        raise ValueError(f"ODinW has no {', '.join(unknown)}; its sets are {', '.join(ODINW_35)}.")
    return {name: ODINW_35[name] for name in names}


def summarize_odinw(scores: Mapping[str, float]) -> dict[str, float]:
    """
    Average and median over data sets.

    Args:
        scores (`Mapping[str, float]`): AP by data set.

    Returns:
        `dict`: "average" and "median".

    Raises:
        ValueError: when there is no score, or a set has none (-1: no ground truth).
    """
    empty = [name for name, score in scores.items() if score < 0]
    if empty or not scores:
        raise ValueError(f"`scores` has no AP for {', '.join(empty) or 'any set'}; every set must count.")
    return {"average": statistics.fmean(scores.values()), "median": statistics.median(scores.values())}


def odinw_table(settings: Mapping[str, Mapping[str, float] | Sequence[Mapping[str, float]]]) -> str:
    """
    A Markdown table of data sets and settings (zero-shot, 1-shot, ..., full-shot), with average and median.

    Args:
        settings (`Mapping`): AP (a fraction) by data set for each setting; or several such, of the protocol's seeds,
            of which mean and standard deviation are shown.

    Returns:
        `str`: values in percent; "-" where a setting lacks a set, whose average and median it then lacks too.
    """
    runs = {name: [value] if isinstance(value, Mapping) else list(value) for name, value in settings.items()}
    rows = sorted({name for values in runs.values() for run in values for name in run}, key=str.lower)
    lines = ["| set | " + " | ".join(runs) + " |", "|---|" + "---:|" * len(runs)]
    for row in rows:
        cells = (score_cell([run[row] for run in values if row in run], len(values)) for values in runs.values())
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    for row in ("average", "median"):
        cells = (
            score_cell([summarize_odinw(run)[row] for run in values if set(run) == set(rows)], len(values))
            for values in runs.values()
        )
        lines.append(f"| **{row}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def score_cell(values: Sequence[float], wanted: int, scale: float = 100.0) -> str:
    """
    A cell of a table of scores.

    Args:
        values (`Sequence[float]`): one for each run.
        wanted (`int`): runs that there should be.
        scale (`float`, *optional*, defaults to 100): what values are multiplied with.

    Returns:
        `str`: the value, mean and standard deviation of several, or "-" where one is missing.
    """
    if not values or len(values) != wanted:
        return "-"
    mean = f"{scale * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * statistics.stdev(values):.1f}"
