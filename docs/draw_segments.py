"""
Draws a sheet of twelve images with the masks that a model finds in them.

    python docs/draw_segments.py --model hub_upload/glipv2-nano --assets scene-assets --photographs \\
        --output docs/figures/segments.jpg

Scenes are the first ones of the composite test, none selected: in turn one that is asked for its labels and 20 absent
ones, with a mask for each object found, and one that is asked for a phrase, with one mask. Photographs (those of
scikit-image that are CC0, `--photographs`) or images of a COCO-format folder (`--coco`) come first. Under each tile
stands what the model was asked for.

`--failures` draws what it does worst instead: the three of the first hundred labelled scenes whose boxes have the
lowest F1 at the threshold, the earlier where it is equal.
"""

import argparse
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from transformers_glipv2 import GLIPv2ForInstanceSegmentation, detect_labels, segment_labels
from transformers_glipv2.cli.arguments import (
    InputFolder,
    InputPath,
    ScriptParser,
    add_drawing,
    add_max_samples,
    add_model,
    add_seed,
    add_threshold,
    check_paths,
)
from transformers_glipv2.cli.checkpoints import load_checkpoint
from transformers_glipv2.cli.errors import run
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.scenes.scenes import ReferringScenes, test_scenes
from transformers_glipv2.evaluation.confusion import confusion_matrix
from transformers_glipv2.evaluation.referring import segment_phrases
from transformers_glipv2.evaluation.scenes import evaluate_examples
from transformers_glipv2.inference.drawing import DrawnObject, draw
from transformers_glipv2.noun_phrases import chunk_noun_phrases

OUTPUT = Path(__file__).parent / "figures" / "segments.jpg"
COLUMNS, ROWS = 3, 4
# Width and height of an image on the sheet, and the height of the line under it, in pixels.
TILE, LINE = (384, 288), 22
MAX_BYTES = 250_000
NEGATIVES = 20
FAILURES, FAILURES_OF = 3, 100
PHOTOGRAPHS = {
    "chelsea": ["cat"],
    "coffee": ["cup", "spoon"],
    "astronaut": ["person", "flag"],
    "rocket": ["rocket", "tower"],
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id of a checkpoint with a mask head")
    add("--assets", type=InputFolder, help="folder that fetch_scene_assets.py wrote")
    help = f"begin with photographs of scikit-image: {', '.join(PHOTOGRAPHS)}"
    add("--photographs", action="store_true", help=help)
    add("--coco", type=InputPath, help="COCO-format folder; begin with images of it, asked for the objects in them")
    add("--split", default="val", help="of that folder (default: val)")
    add_max_samples(parser, "images of that folder", default=COLUMNS * ROWS)
    help = f"draw {FAILURES} failures, of the first {FAILURES_OF} labelled scenes"
    add("--failures", action="store_true", help=help)
    add_seed(parser, "of the scenes")
    add_threshold(parser)
    add_drawing(parser, OUTPUT)
    args = parser.parse_args(arguments)
    if not (args.assets or args.coco):
        parser.error("twelve images need --assets or --coco")
    if args.failures and not args.assets:
        parser.error("failures are drawn of scenes, which need --assets")
    return args


def images(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each with "image" and either "labels" and "asked", how they are written down, or "phrase"."""
    if args.photographs:
        from skimage import data

        for name, labels in PHOTOGRAPHS.items():
            image = Image.fromarray(getattr(data, name)())
            yield {"image": image, "labels": labels, "asked": ", ".join(labels)}
    if args.coco:
        examples = load_coco(args.coco, split=args.split)
        for index in range(min(args.max_samples, len(examples))):
            example = examples[index]
            labels = sorted(set(example["objects"]["category"]))
            if labels:
                yield {"image": example["image"], "labels": labels, "asked": ", ".join(labels)}
    if args.assets:
        count = COLUMNS * ROWS
        labelled = test_scenes(args.assets, "seen", count, NEGATIVES, args.seed)
        referring = ReferringScenes(args.assets, count, args.seed)
        for index in range(count):
            yield asked_for_labels(labelled[index])
            yield {"image": referring[index]["image"], "phrase": referring[index]["text"]}


def asked_for_labels(scene: dict[str, Any]) -> dict[str, Any]:
    named = ", ".join(dict.fromkeys(scene["objects"]["category"]))
    asked = f"{named} and {len(scene['negative_labels'])} absent labels"
    return {"image": scene["image"], "labels": scene["labels"], "asked": asked}


def failures(args: argparse.Namespace, model: Any, processor: Any) -> list[dict[str, Any]]:
    """The labelled scenes with the lowest F1."""
    scenes = test_scenes(args.assets, "seen", FAILURES_OF, NEGATIVES, args.seed)

    def detect(scene: Any) -> Any:
        return detect_labels(model, processor, scene["image"], scene["labels"], threshold=args.threshold)[0]

    scores = []
    for index in tqdm(range(FAILURES_OF), unit="scene"):
        content, found = evaluate_examples([scenes[index]], detect)
        matrix = confusion_matrix(content, found, args.threshold)
        # Of boxes and objects, how many are on one of the same label.
        scores.append(2 * np.diag(matrix)[:-1].sum() / (len(found) + len(content["annotations"])))
    worst = sorted(range(FAILURES_OF), key=lambda index: scores[index])[:FAILURES]
    return [asked_for_labels(scenes[index]) for index in worst]


def draw_tile(model: Any, processor: Any, example: dict[str, Any], threshold: float) -> Image.Image:
    """The image with masks, names and what was asked for."""
    image = example["image"].convert("RGB")
    image.thumbnail(TILE)  # before drawing, so that names stay readable
    if "phrase" in example:
        asked, objects = f"“{example['phrase']}”", drawn_phrase(model, processor, image, example["phrase"])
    else:
        asked, objects = example["asked"], drawn_objects(model, processor, image, example["labels"], threshold)
    tile = Image.new("RGB", (TILE[0], TILE[1] + LINE), "white")
    tile.paste(draw(image, objects), ((TILE[0] - image.width) // 2, (TILE[1] - image.height) // 2))
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(13)
    while pen.textlength(asked, font=font) > TILE[0] - 8:
        asked = f"{asked.removesuffix('...')[:-1]}..."
    pen.text((TILE[0] / 2, TILE[1] + LINE / 2), asked, fill="black", font=font, anchor="mm")
    return tile


def drawn_objects(model, processor, image: Image.Image, labels: list[str], threshold: float) -> list[DrawnObject]:
    (found,) = segment_labels(model, processor, image, labels, threshold=threshold, return_rle=False)
    columns = (found["text_labels"], found["scores"].tolist(), found["boxes"].tolist(), found["masks"].numpy())
    return [DrawnObject(f"{name} {score:.2f}", box, mask) for name, score, box, mask in zip(*columns, strict=True)]


def drawn_phrase(model, processor, image: Image.Image, phrase: str) -> list[DrawnObject]:
    """The mask in the highest-scoring box: each phrase refers to one object."""
    span = chunk_noun_phrases(phrase)[0]
    (found,) = segment_phrases(model, processor, image, [phrase], threshold=1.0, spans=[span])
    return [DrawnObject(f"{found['scores'][0]:.2f}", found["boxes"][0].tolist(), found["mask"].numpy())]


def as_jpeg(image: Image.Image) -> bytes:
    """The image in the best quality that `MAX_BYTES` allow."""
    content = b""
    for quality in range(90, 20, -5):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        content = buffer.getvalue()
        if len(content) <= MAX_BYTES:
            break
    return content


def main(arguments: list[str] | None = None) -> None:
    args = check_paths(parse_args(arguments))
    model, processor = load_checkpoint(GLIPv2ForInstanceSegmentation, args.model)
    count = FAILURES if args.failures else COLUMNS * ROWS
    chosen = failures(args, model, processor) if args.failures else itertools.islice(images(args), count)
    sheet = Image.new("RGB", (COLUMNS * TILE[0], count // COLUMNS * (TILE[1] + LINE)), "white")
    for index, image in enumerate(tqdm(chosen, total=count, unit="image")):
        row, column = divmod(index, COLUMNS)
        tile = draw_tile(model, processor, image, args.threshold)
        sheet.paste(tile, (column * TILE[0], row * (TILE[1] + LINE)))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(f".{args.output.name}.partial")
    partial.write_bytes(as_jpeg(sheet))
    os.replace(partial, args.output)


if __name__ == "__main__":
    run(main)
