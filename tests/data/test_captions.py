import json

import pytest
from PIL import Image

from transformers_glipv2.data.captions import load_coco_captions, load_karpathy_captions
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.schema import check_example

from .stub_processor import StubProcessor

IMAGES = [{"id": 3, "file_name": "3.jpg", "width": 40, "height": 30}, {"id": 4, "file_name": "val/4.jpg"}]
CAPTIONS = [
    {"image_id": 3, "caption": "a dog"},
    {"image_id": 4, "caption": "a cat \n"},
    {"image_id": 3, "caption": "the dog on the left"},
]


def write(folder, captions=CAPTIONS, images=IMAGES):
    for number in (3, 4):
        Image.new("RGB", (40, 30)).save(folder / f"{number}.jpg")
    entries = [{"id": number, **entry} for number, entry in enumerate(captions)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": entries}))
    return folder / "captions.json"


def test_one_row_a_caption_or_a_image(tmp_path):
    dataset = load_coco_captions(write(tmp_path))
    assert [(example["image_id"], example["text"]) for example in dataset] == [
        (3, "a dog"),
        (3, "the dog on the left"),
        (4, "a cat \n"),
    ]
    images = load_coco_captions(tmp_path / "captions.json", per_image=True)
    assert [example["captions"] for example in images] == [["a dog", "the dog on the left"], ["a cat \n"]]
    for example in [*dataset, *images]:
        check_example(example)
    batch = GroundingCollator(StubProcessor(), mlm_probability=0.5)(list(dataset))
    assert batch["labels"] == [None] * 3 and batch["input_ids"].shape[0] == 3


@pytest.mark.parametrize(
    ("problem", "captions", "images"),
    [
        ("empty_text", [*CAPTIONS, {"image_id": 3, "caption": " "}], IMAGES),
        ("empty_text", [*CAPTIONS, {"image_id": 3}], IMAGES),
        ("empty_text", CAPTIONS, [*IMAGES, {"id": 5, "file_name": "3.jpg"}]),
        ("unknown_image", [*CAPTIONS, {"image_id": 9, "caption": "a"}], IMAGES),
        ("bad_entry", CAPTIONS, [*IMAGES, {"id": 5}]),
        ("bad_entry", CAPTIONS, [*IMAGES, IMAGES[0]]),
    ],
)
def test_bad_entries_are_counted_or_refused(tmp_path, problem, captions, images):
    path = write(tmp_path, captions, images)
    dataset = load_coco_captions(path)
    assert dataset.report.counts == {problem: 1} and len(dataset) == 3
    with pytest.raises(ValueError, match="policy"):
        load_coco_captions(path, policy="refuse")


def karpathy(folder, images):
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    (folder / "val2014").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(folder / "val2014" / "a.jpg")
    return path, folder


KARPATHY = {
    "filepath": "val2014",
    "filename": "a.jpg",
    "imgid": 0,
    "cocoid": 770337,
    "split": "restval",
    "sentences": [{"raw": "A dog.", "tokens": ["a", "dog"]}, {"raw": "Dogs."}],
}


def test_karpathy_splits(tmp_path):
    train = {**KARPATHY, "split": "train", "cocoid": 1}
    test = {"filename": "a.jpg", "imgid": 5, "split": "test", "sentences": [{"raw": "A cat."}]}
    files = karpathy(tmp_path, [KARPATHY, train, test])
    assert [example["image_id"] for example in load_karpathy_captions(*files)] == [770337, 770337, 1, 1]
    examples = load_karpathy_captions(*files, "restval", per_image=True)
    assert [example["captions"] for example in examples] == [["A dog.", "Dogs."]]
    flickr = load_karpathy_captions(files[0], tmp_path / "val2014", "test")
    assert [(example["image_id"], example["text"]) for example in flickr] == [(5, "A cat.")]
    with pytest.raises(ValueError, match="restval, test, train"):
        load_karpathy_captions(*files, "valid")


@pytest.mark.parametrize(
    ("problem", "image"),
    [
        ("bad_entry", {**KARPATHY, "filename": None}),
        ("bad_entry", {**KARPATHY, "cocoid": None}),
        ("empty_text", {**KARPATHY, "sentences": []}),
        ("empty_text", {**KARPATHY, "sentences": [{"raw": ""}]}),
    ],
)
def test_bad_karpathy_entries(tmp_path, problem, image):
    files = karpathy(tmp_path, [{**KARPATHY, "split": "train"}, {**image, "split": "train"}])
    dataset = load_karpathy_captions(*files)
    assert dataset.report.counts == {problem: 1} and len(dataset) == 2
    with pytest.raises(ValueError, match="policy"):
        load_karpathy_captions(*files, policy="refuse")


def test_real_captions(data_dir):
    dataset = load_coco_captions(data_dir / "coco-mini" / "val_captions.json")
    content = json.loads((data_dir / "coco-mini" / "val_captions.json").read_text())
    assert len(dataset) == len(content["annotations"]) == 605 and dataset.report.counts == {}
    assert len(load_coco_captions(data_dir / "coco-mini" / "val_captions.json", per_image=True)) == 121
    assert dataset[17]["image"].mode == "RGB"
