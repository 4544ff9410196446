"""`glipv2 data`: what it says of a data set, the sheet that it draws, and what it writes."""

import io
import json

import pytest
from PIL import Image

from tests.data.formats.six_images import BOXES, SPLITS, WRITERS
from transformers_glipv2.cli.data_sheet import chosen_indices
from transformers_glipv2.cli.main import run_command
from transformers_glipv2.data.formats.open import open_dataset
from transformers_glipv2.data.masks import decode_mask, encode_mask
from transformers_glipv2.data.schema import BoxReport


def test_inspect_counts_and_draws(tmp_path, capsys):
    folder = WRITERS["yolo"](tmp_path / "data")
    assert run_command(["data", "inspect", str(folder), "--output", str(tmp_path / "sheet.png")]) == 0
    said = capsys.readouterr().out
    assert f"{folder}: YOLO, data.yaml" in said and "3 classes: cat, dog, teddy bear" in said
    assert "train  4 images, 6 boxes, 1 image without" in said
    assert [line.split() for line in said.splitlines() if line.startswith("dog ")] == [["dog", "3", "1"]]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 4 * 320 and sheet.size[1] < 320
    assert run_command(["data", "inspect", str(folder), "--json", "--output", str(tmp_path / "sheet.png")]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["splits"]["val"]["boxes"] == {"teddy bear": 1, "dog": 1, "cat": 1}


def boxes_by_image(data) -> dict:
    """Boxes of every split by number of the image, rounded: YOLO's are fractions."""
    found = {}
    for split in data.split_names:
        for record in data.splits[split].records:
            objects = record["objects"]
            rows = zip(objects["category"], objects["bbox"], strict=True)
            number = int(record["image_path"].rsplit("/", 1)[1].partition(".")[0])
            found[number] = [(name, tuple(round(value, 4) for value in box)) for name, box in rows]
    return found


def test_from_coco_to_yolo_and_back(tmp_path, capsys):
    folder = WRITERS["coco_official"](tmp_path / "coco")
    for index, (source, to) in enumerate([("coco", "yolo"), ("yolo0", "coco"), ("coco1", "yolo")]):
        target = f"{to}{index}"
        arguments = ["data", "convert", str(tmp_path / source), "--to", to, "--output", str(tmp_path / target)]
        assert run_command(arguments) == 0
        data = open_dataset(tmp_path / target)
        assert data.format == to and data.classes == ["cat", "dog", "teddy bear"]
        assert {name: len(data.split(name)) for name in data.split_names} == {"train": 4, "val": 2}
        expected = {number: [(name, tuple(map(float, box))) for name, box in boxes] for number, boxes in BOXES.items()}
        assert boxes_by_image(data) == expected
    images = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    assert images == {path.name: path.read_bytes() for path in (tmp_path / "yolo2").rglob("*.png")}
    assert len(images) == sum(map(len, SPLITS.values()))
    assert "train 4 images, val 2 images" in capsys.readouterr().out


def test_masks_images_on_their_side_and_images_of_one_name_are_converted(tmp_path):
    folder = tmp_path / "coco"
    for place, size in (("a", (40, 20)), ("b", (40, 20))):
        (folder / place).mkdir(parents=True)
        image = Image.new("RGB", size, "green")
        exif = image.getexif()
        exif[0x0112] = 6 if place == "b" else 1
        image.save(folder / place / "1.jpg", exif=exif)
    polygon = [2.0, 2.0, 12.0, 2.0, 12.0, 10.0]
    parts = [[20.0, 2.0, 24.0, 2.0, 24.0, 8.0, 20.0, 8.0], [30.0, 4.0, 36.0, 4.0, 36.0, 18.0]]
    runs = encode_mask(decode_mask([polygon], 20, 40))
    content = {
        "images": [
            {"id": 1, "file_name": "a/1.jpg", "width": 40, "height": 20},
            {"id": 2, "file_name": "b/1.jpg", "width": 40, "height": 20},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 8], "segmentation": [polygon]},
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": [0, 0, 40, 10]},
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [20, 2, 16, 16], "segmentation": parts},
            {"id": 4, "image_id": 1, "category_id": 1, "bbox": [2, 2, 10, 8], "segmentation": runs},
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    for to in ("coco", "yolo"):
        assert run_command(["data", "convert", str(folder), "--to", to, "--output", str(tmp_path / f"as_{to}")]) == 0
        train = open_dataset(tmp_path / f"as_{to}", val_fraction=0, with_masks=True).split("train")
        first, second = sorted(train, key=lambda example: example["image"].size)[::-1]
        assert first["objects"]["segmentation"][0] == [pytest.approx(polygon)]
        for segmentation, expected in zip(first["objects"]["segmentation"], ([polygon], parts, runs), strict=True):
            assert (decode_mask(segmentation, 20, 40) == decode_mask(expected, 20, 40)).all()
        # Turned upright, with its box.
        assert second["image"].size == (20, 40) and second["image"].getexif().get(0x0112, 1) == 1
        assert second["objects"]["bbox"] == [pytest.approx([10, 0, 10, 40])]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data", "inspect", "{folder}/nothing"], "there is no data set at"),
        (["data", "inspect", "{folder}", "--split", "test"], "its splits are train, val"),
        (["data", "inspect", "{folder}", "--output", "sheet.txt"], "names no format of images"),
        (["data", "inspect", "{folder}", "--format", "labelme"], "choose one of datasets, imagefolder, coco"),
        (["data", "convert", "{folder}", "--to", "voc", "--output", "{folder}/new"], "choose one of coco, yolo"),
        (["data", "convert", "{folder}", "--to", "coco", "--output", "{folder}"], "is there already"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, arguments, sentence):
    folder = WRITERS["yolo"](tmp_path / "data")
    assert run_command([argument.format(folder=folder) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and sentence in said


def test_class_and_file_names_may_hold_any_character(tmp_path, monkeypatch):
    """JSON can name what no encoding has, and a terminal's encoding may lack what UTF-8 has."""
    (tmp_path / "train").mkdir()
    image = {"width": 40, "height": 30}
    for index in range(3):
        Image.new("RGB", (40, 30)).save(tmp_path / "train" / f"{index}.png")
    names = ["0.png", "1.png", "2.png", "\ud800.png"]
    content = {
        "images": [{"id": i, "file_name": name, **image} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 10, 12]} for i in range(4)],
        "categories": [{"id": 1, "name": "cat \ud800 \N{CAT FACE}"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert run_command(["data", "inspect", str(tmp_path), "--output", str(tmp_path / "sheet.png")]) == 0
    assert rb"cat \ud800 \U0001f431" in printed.getvalue()


def test_problems_are_named_in_text_that_can_be_written(tmp_path):
    report = BoxReport(name="\ud800.json")
    report.add("unknown_image", "image \ud800")
    report.summary().encode()
    with pytest.raises(ValueError, match=r"image \\ud800") as raised:
        BoxReport("refuse").add("unknown_image", "image \ud800")
    str(raised.value).encode()


def test_images_of_a_sheet_are_chosen_without_reading_all_records():
    read = []

    class Records(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    names = [["cat"] if index % 2 else ["dog"] for index in range(1000)]
    records = Records({"objects": {"category": own}} for own in names)
    chosen = chosen_indices(records, 16, 0, ["cat", "dog"])
    assert len(chosen) == 16 and len(read) < 100
    assert chosen == chosen_indices(records, 16, 0)
    assert {names[index][0] for index in chosen[:2]} == {"cat", "dog"}
