import io
import json

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from transformers_glipv2.data.captions import load_coco_captions
from transformers_glipv2.data.dataset import ImageDataset, ImageStream
from transformers_glipv2.data.few_shot import few_shot
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.hub import from_hf_dataset, load_hub
from transformers_glipv2.data.hub_export import to_hf_dataset
from transformers_glipv2.data.masks import decode_mask
from transformers_glipv2.data.mixture import IndexedStream, MixtureDataset
from transformers_glipv2.data.schema import check_example

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def image_bytes(color=(10, 20, 30), size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def usual(objects, category=None, size=True, **columns):
    """A data set in the usual schema, an image for each of the `objects`."""
    examples = [
        {"image": image_bytes((number, 0, 0)), "image_id": 100 + number, "width": 40, "height": 30, "objects": entry}
        for number, entry in enumerate(objects)
    ]
    features = {
        "image": datasets.Image(),
        "image_id": datasets.Value("int64"),
        "width": datasets.Value("int64"),
        "height": datasets.Value("int64"),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
            "category": datasets.List(category or datasets.ClassLabel(names=["cup", "dog"])),
        },
    }
    dataset = datasets.Dataset.from_list(examples, features=datasets.Features(features))
    return dataset if size else dataset.remove_columns(["width", "height"])


GOOD = {"bbox": [[1, 2, 10, 12], [5, 5, 20, 20]], "category": [1, 0]}
EMPTY = {"bbox": [], "category": []}


@pytest.mark.parametrize("size", [True, False])
def test_the_usual_schema(size):
    dataset = from_hf_dataset(usual([GOOD, EMPTY], size=size))
    assert dataset.class_names == ["cup", "dog"] and len(dataset) == 2 and dataset.report.counts == {}
    example = dataset[0]
    check_example(example)
    assert example["image_id"] == 100 and example["labels"] == ["cup", "dog"] and example["image"].size == (40, 30)
    assert example["objects"] == {"bbox": GOOD["bbox"], "category": ["dog", "cup"]}
    assert dataset[1]["image"].getpixel((0, 0)) == (1, 0, 0) and dataset[1]["objects"]["bbox"] == []
    assert len(few_shot(dataset, 1, 0, copies=1)) == 1
    stream = from_hf_dataset(usual([GOOD, EMPTY], size=size).to_iterable_dataset())
    assert isinstance(stream, ImageStream) and list(stream) == list(dataset) == list(stream)


def test_other_formats():
    corners = {"bbox": [[1, 2, 11, 14]], "category": [1]}
    assert from_hf_dataset(usual([corners]), box_format="xyxy")[0]["objects"]["bbox"] == [[1, 2, 10, 12]]
    renamed = usual([GOOD]).rename_columns({"image": "photo", "objects": "things", "image_id": "number"})
    columns = {"image": "photo", "objects": "things", "image_id": "number"}
    assert from_hf_dataset(renamed, columns=columns)[0]["image_id"] == 100
    with pytest.raises(ValueError, match="no column found for image, objects, bbox, category among photo"):
        from_hf_dataset(renamed)
    examples = [{"image": image_bytes(), "objects": [{"bbox": [1.0, 2.0, 3.0, 4.0], "label": "dog"}]}]
    entry = {"bbox": datasets.List(datasets.Value("float64")), "label": datasets.Value("string")}
    features = datasets.Features({"image": datasets.Image(), "objects": datasets.List(entry)})
    listed = from_hf_dataset(datasets.Dataset.from_list(examples, features=features))
    assert listed[0]["objects"] == {"bbox": [[1, 2, 3, 4]], "category": ["dog"]} and listed[0]["image_id"] == 0
    assert listed.class_names == ["dog"]


def test_class_names():
    numbers = usual([GOOD], datasets.Value("int64"))
    with pytest.raises(ValueError, match="pass `class_names`"):
        from_hf_dataset(numbers)
    with pytest.raises(ValueError, match="pass `class_names`"):
        from_hf_dataset(numbers.to_iterable_dataset())
    assert from_hf_dataset(numbers, class_names=["a", "b"])[0]["objects"]["category"] == ["b", "a"]
    words = usual([{**GOOD, "category": ["dog", "bird"]}], datasets.Value("string"))
    assert from_hf_dataset(words).class_names == ["bird", "dog"]
    stream = from_hf_dataset(words.to_iterable_dataset(), class_names=["dog"])
    assert [example["objects"]["category"] for example in stream] == [["dog"]] and stream.report.counts == {
        "unknown_class": 1
    }


@pytest.mark.parametrize(
    ("problem", "objects"),
    [
        ("degenerate", {"bbox": [[1, 2, 0, 4]], "category": [0]}),
        ("mostly_outside", {"bbox": [[1, 2, 5000, 4]], "category": [0]}),
        ("not_a_number", {"bbox": [[1, 2, 5]], "category": [0]}),
        ("not_a_number", {"bbox": [[1, 2, float("nan"), 4]], "category": [0]}),
        ("not_a_number", {"bbox": [None], "category": [0]}),
        ("unknown_class", {"bbox": [[1, 2, 5, 5]], "category": [7]}),
        ("unknown_class", {"bbox": [[1, 2, 5, 5]], "category": [-1]}),
        ("unknown_class", {"bbox": [[1, 2, 5, 5]], "category": [None]}),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_boxes_are_counted_or_refused(problem, objects, streaming):
    def load(**options):
        dataset = usual([GOOD, objects], datasets.Value("int64"))
        dataset = dataset.to_iterable_dataset() if streaming else dataset
        return from_hf_dataset(dataset, class_names=["cup", "dog"], **options)

    dataset = load()
    examples = list(dataset) + list(dataset)
    assert dataset.report.counts == {problem: 1} and sum(len(example["objects"]["bbox"]) for example in examples) == 4
    with pytest.raises(ValueError, match="policy"):
        list(load(policy="refuse"))


@pytest.mark.parametrize("size", [True, False])
def test_unreadable_images(size):
    broken = usual([GOOD, GOOD, GOOD], size=size).cast_column("image", datasets.Image(decode=False))
    images = [{"bytes": b"none", "path": None}, image_bytes(), {"bytes": None, "path": "nowhere.png"}]
    examples = [{**example, "image": image} for example, image in zip(broken, images, strict=True)]
    broken = datasets.Dataset.from_list(examples, features=usual([GOOD], size=size).features)
    dataset = from_hf_dataset(broken)
    assert [example["image_id"] for example in dataset] == [101] and dataset.report.counts == {"unreadable_image": 2}
    stream = from_hf_dataset(broken.to_iterable_dataset())
    assert [example["image_id"] for example in stream] == [101] and stream.report.counts == {"unreadable_image": 2}


def test_local_folders(tmp_path):
    usual([GOOD, EMPTY]).to_parquet(tmp_path / "parquet" / "train.parquet")
    cache = str(tmp_path / "cache")
    dataset = load_hub(str(tmp_path / "parquet"), cache_dir=cache)
    assert dataset.class_names == ["cup", "dog"] and dataset[0]["objects"]["category"] == ["dog", "cup"]
    stream = load_hub(str(tmp_path / "parquet"), streaming=True, cache_dir=cache)
    assert list(stream) == list(dataset)
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    lines = []
    for number in range(2):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "objects": {"bbox": [[1, 2, 3, 4]], "category": [0]}}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for path, options in ((str(tmp_path / "images"), {}), ("imagefolder", {"data_dir": str(tmp_path / "images")})):
        dataset = load_hub(path, class_names=["cup"], cache_dir=cache, **options)
        assert [example["image"].getpixel((0, 0))[0] for example in dataset] == [0, 1]
        assert dataset[1]["objects"] == {"bbox": [[1, 2, 3, 4]], "category": ["cup"]}


def write_coco(folder):
    (folder / "train").mkdir()
    Image.new("RGB", (40, 30), (9, 9, 9)).save(folder / "train" / "1.png")
    crowd = {"size": [30, 40], "counts": [0, 30, 1170]}
    annotations = [
        {"segmentation": [[1, 2, 11, 2, 11, 14]], "bbox": [1, 2, 10, 12], "category_id": 2, "area": 60.5},
        {"segmentation": crowd, "bbox": [0, 0, 1, 30], "category_id": 1, "area": 30, "iscrowd": 1},
        {"bbox": [3, 3, 5, 5], "category_id": 1},
    ]
    content = {
        "images": [{"id": n, "file_name": "train/1.png", "width": 40, "height": 30} for n in (1, 2)],
        "annotations": [{"id": n, "image_id": 1, **entry} for n, entry in enumerate(annotations)],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cup"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return load_coco(folder, split="train", with_masks=True, policy={"crowd": "keep"})


def test_detection_rows_come_back(tmp_path):
    dataset = write_coco(tmp_path)
    hub = to_hf_dataset(dataset)
    assert hub.features["objects"]["category"].feature.names == ["dog", "cup"]
    hub.to_parquet(tmp_path / "x.parquet")
    policy = {"crowd": "keep"}
    again = load_hub("parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "c"), policy=policy)
    assert again.class_names == dataset.class_names and len(again) == 2
    for before, after in zip(dataset, again, strict=True):
        masks = [example["objects"].pop("segmentation") for example in (before, after)]
        assert after == before
        for mine, other in zip(*masks, strict=True):
            expected = decode_mask(mine, 30, 40)
            found = decode_mask(other, 30, 40)
            assert (expected is None and found is None) or np.array_equal(expected, found)
    streamed = next(iter(from_hf_dataset(hub.to_iterable_dataset(), policy=policy)))
    assert streamed["objects"]["iscrowd"] == [0, 1, 0]


def test_rows_of_other_kinds_come_back(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    common = {"image_path": str(tmp_path / "1.png"), "image_id": 1}
    objects = {"bbox": [[1.0, 2.0, 3.0, 4.0]], "phrase": ["a cup"], "tokens_positive": [[[0, 5], [9, 12]]]}
    records = [
        {**common, "kind": "grounding", "text": "a cup on it", "objects": {**objects, "tokens_positive": [[[0, 5]]]}},
        {**common, "kind": "caption", "text": "a cup", "captions": ["a cup", "cups"], "image_id": "two"},
        {**common, "kind": "vqa", "question": "what?", "answers": [], "question_id": 7},
        {**common, "kind": "vqa", "question": "what?", "answers": ["cup"], "question_id": 7},
        {**common, "kind": "detection", "labels": ["cup"], "objects": {"bbox": [[1.0, 2, 3, 4]], "category": ["cup"]}},
    ]
    dataset = ImageDataset(records)
    again = from_hf_dataset(to_hf_dataset(dataset))
    examples = list(again)
    assert again.report.counts == {} and len(examples) == 5
    for before, after in zip(dataset, examples, strict=True):
        assert after == {**before, "image_id": str(before["image_id"])}
        check_example(after)
    with pytest.raises(ValueError, match="'extra' holds a set"):
        to_hf_dataset(ImageDataset([{**records[1], "extra": {1}}]))
    kinds = to_hf_dataset(dataset).map(
        lambda example: {"kind": "speech" if example["kind"] == "vqa" else example["kind"]}
    )
    assert from_hf_dataset(kinds).report.counts == {"bad_entry": 2}


def test_streams_become_iterable_data_sets(tmp_path):
    stream = write_coco(tmp_path).stream()
    hub = to_hf_dataset(stream)
    assert isinstance(hub, datasets.IterableDataset)
    assert [example["image_id"] for example in hub.take(1)] == [1] and len(list(hub)) == 2

    examples = list(stream)
    again = list(from_hf_dataset(hub, policy={"crowd": "keep"}))
    assert [example["objects"]["bbox"] for example in again] == [example["objects"]["bbox"] for example in examples]
    assert (
        [example["labels"] for example in again] == [example["labels"] for example in examples] == [["dog", "cup"]] * 2
    )


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_workers_share_a_stream(shards):
    stream = from_hf_dataset(usual([GOOD] * 6).to_iterable_dataset(num_shards=shards))
    loader = DataLoader(stream, batch_size=None, num_workers=2, collate_fn=lambda example: example["image_id"])
    assert sorted(loader) == list(range(100, 106))
    mixture = MixtureDataset([IndexedStream(stream)], length=4)
    with pytest.raises(ValueError, match="use one worker"):
        list(DataLoader(mixture, batch_size=None, num_workers=2, collate_fn=lambda example: example["image_id"]))
    loader = DataLoader(mixture, batch_size=None, num_workers=1, collate_fn=lambda example: example["image_id"])
    assert list(loader) == [100, 101, 102, 103]


def test_shuffled_streams_differ_from_pass_to_pass():
    stream = IndexedStream(from_hf_dataset(usual([GOOD] * 8).to_iterable_dataset().shuffle(seed=1, buffer_size=8)))
    order = [stream[number]["image_id"] for number in range(16)]
    assert sorted(order[:8]) == sorted(order[8:]) == list(range(100, 108)) and order[:8] != order[8:]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="no examples"):
        from_hf_dataset(usual([GOOD]).select([]))
    with pytest.raises(ValueError, match="box_format"):
        from_hf_dataset(usual([GOOD]), box_format="yolo")
    with pytest.raises(ValueError, match="what can be named"):
        from_hf_dataset(usual([GOOD]), columns={"photo": "image"})
    with pytest.raises(ValueError, match="says that image is 'photo'"):
        from_hf_dataset(usual([GOOD]), columns={"image": "photo"})
    with pytest.raises(TypeError, match="one split"):
        from_hf_dataset(datasets.DatasetDict({"train": usual([GOOD])}))


def test_real_images(data_dir, tmp_path):
    for dataset in (
        load_coco(data_dir / "raccoon", split="val"),
        load_coco_captions(data_dir / "coco-mini" / "val_captions.json", per_image=True),
    ):
        again = from_hf_dataset(to_hf_dataset(dataset))
        assert len(again) == len(dataset) and again.report.counts == {}
        for index in (0, len(dataset) // 2):
            assert again[index] == dataset[index]
