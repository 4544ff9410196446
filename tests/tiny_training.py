"""What tests of training need: a tiny checkpoint with its processor, and COCO-format folders of drawn images."""

import json
from pathlib import Path

from PIL import Image, ImageDraw
from transformers import set_seed

from tests.data.stub_processor import tiny_tokenizer
from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2ForPreTraining, GLIPv2ImageProcessor, GLIPv2Processor

CLASSES = {"cat": "red", "dog": "blue"}


def tiny_processor() -> GLIPv2Processor:
    """Of 64-pixel images and a vocabulary of a hundred word pieces."""
    image_processor = GLIPv2ImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    return GLIPv2Processor(image_processor, tiny_tokenizer())


def tiny_checkpoint(folder: Path, **overrides) -> Path:
    """A `GLIPv2ForPreTraining` of random weights (the same each time) and its processor."""
    set_seed(0)
    GLIPv2ForPreTraining(tiny_config(**overrides)).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def drawn_coco(folder: Path, **images_per_split: int) -> Path:
    """
    A COCO-format folder: in image n a red square "cat" or a blue square "dog", nothing in every fourth.

    Args:
        folder: to write to.
        images_per_split: such as `train=4, val=2`.
    """
    for split, count in images_per_split.items():
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(count):
            image = Image.new("RGB", (96, 64), "white")
            images.append({"id": index, "file_name": f"{split}/{index}.png", "width": 96, "height": 64})
            if index % 4 != 3:
                x, y, side = 8 + 10 * (index % 3), 6 + 5 * (index % 2), 36
                name = list(CLASSES)[index % 2]
                ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), fill=CLASSES[name])
                annotations.append(
                    {
                        "id": index,
                        "image_id": index,
                        "category_id": list(CLASSES).index(name) + 1,
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                    }
                )
            image.save(folder / images[-1]["file_name"])
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def read_log(output: Path) -> list[dict]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
