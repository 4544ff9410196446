import gzip
import json

import numpy as np
import pytest
from PIL import Image

from transformers_glipv2.data.formats.coco import find_annotation_file, load_coco
from transformers_glipv2.data.masks import decode_mask, encode_mask, stack_masks
from transformers_glipv2.data.schema import BoxReport, check_example, checked_box

pytestmark = pytest.mark.usefixtures("reader")

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "traffic light"}]


def write_folder(folder, annotations, categories=CATEGORIES, num_images=2, name="train.json", prefix="train/"):
    for index in range(num_images):
        path = folder / "train" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (40, 30), (0, index, 0)).save(path)
    images = [{"id": i, "file_name": f"{prefix}{i}.jpg", "width": 40, "height": 30} for i in range(num_images)]
    entries = [{"id": i, "iscrowd": 0, **entry} for i, entry in enumerate(annotations)]
    content = {"images": images, "annotations": entries, "categories": categories}
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(json.dumps(content))
    return folder


GOOD = {"image_id": 0, "category_id": 3, "bbox": [1, 2, 10, 12]}


def test_folders_with_a_split(tmp_path):
    dataset = load_coco(write_folder(tmp_path, [GOOD]), split="train")
    assert len(dataset) == 2
    example = dataset[0]
    assert example["image"].size == (40, 30) and example["image"].mode == "RGB"
    assert example["labels"] == ["dog", "traffic light"] == dataset.class_names
    assert dataset.category_ids == [7, 3]
    assert example["objects"]["category"] == ["traffic light"]
    assert example["objects"]["bbox"] == [[1.0, 2.0, 10.0, 12.0]]
    assert dataset[1]["objects"]["bbox"] == []
    assert len(load_coco(tmp_path, split="train", keep_empty=False)) == 1
    check_example(example)


def test_roboflow_folders(tmp_path):
    categories = [{"id": 0, "name": "pieces"}, {"id": 1, "name": "bishop", "supercategory": "pieces"}]
    annotation = {**GOOD, "category_id": 1}
    write_folder(tmp_path, [annotation], categories, name="train/_annotations.coco.json", prefix="")
    assert load_coco(tmp_path / "train")[0]["labels"] == ["bishop"]
    assert load_coco(tmp_path, split="train")[0]["objects"]["category"] == ["bishop"]
    write_folder(tmp_path, [{**GOOD, "category_id": 0}], categories, name="train/_annotations.coco.json", prefix="")
    assert load_coco(tmp_path / "train").class_names == ["pieces", "bishop"]


def test_a_missing_split_names_what_there_is(tmp_path):
    write_folder(tmp_path, [GOOD])
    with pytest.raises(FileNotFoundError, match="splits found: train"):
        load_coco(tmp_path, split="test")


BAD = {
    "not_a_number": {**GOOD, "bbox": [1, 2, float("nan"), 4]},
    "degenerate": {**GOOD, "bbox": [1, 2, 0, 4]},
    "mostly_outside": {**GOOD, "bbox": [38, 2, 40, 4]},
    "crowd": {**GOOD, "iscrowd": 1},
    "unknown_class": {**GOOD, "category_id": 99},
    "unknown_image": {**GOOD, "image_id": 99},
}


@pytest.mark.parametrize("problem", BAD)
def test_bad_boxes_are_counted_skipped_or_refused(tmp_path, problem):
    write_folder(tmp_path, [GOOD, BAD[problem], BAD[problem]])
    dataset = load_coco(tmp_path, split="train")
    assert dataset.report.counts == {problem: 2}
    assert "2 times" in dataset.report.summary() and "the first: " in dataset.report.summary()
    assert sum(len(example["objects"]["bbox"]) for example in dataset) == 1
    with pytest.raises(ValueError, match="policy"):
        load_coco(tmp_path, split="train", policy="refuse")
    with pytest.raises(ValueError, match="policy"):
        load_coco(tmp_path, split="train", policy={problem: "refuse"})


def test_boxes_are_clipped_unless_the_policy_says_otherwise_and_crowds_can_be_kept(tmp_path):
    outside = {**GOOD, "bbox": [30, 2, 20, 4]}
    write_folder(tmp_path, [outside, BAD["crowd"], {**GOOD, "bbox": [-0.5, 0, 41, 30]}])
    dataset = load_coco(tmp_path, split="train")
    assert dataset[0]["objects"]["bbox"] == [[30, 2, 10, 4], [-0.5, 0, 41, 30]]
    assert dataset.report.counts == {"out_of_image": 1, "crowd": 1} and "clipped" in dataset.report.summary()
    assert len(load_coco(tmp_path, split="train", policy={"out_of_image": "skip"})[0]["objects"]["bbox"]) == 1
    with pytest.raises(ValueError, match="out_of_image"):
        load_coco(tmp_path, split="train", policy={"out_of_image": "refuse"})
    policy = {"out_of_image": "keep", "crowd": "keep"}
    objects = load_coco(tmp_path, split="train", policy=policy)[0]["objects"]
    assert objects["bbox"][0] == [30, 2, 20, 4] and objects["iscrowd"] == [0, 1, 0]


@pytest.mark.parametrize(
    ("problem", "annotation"),
    [
        ("not_a_number", {**GOOD, "bbox": None}),
        ("not_a_number", {**GOOD, "bbox": "1 2 3 4"}),
        ("not_a_number", {"image_id": 0, "category_id": 3}),
        ("unknown_class", {"image_id": 0, "bbox": [1, 2, 3, 4]}),
        ("unknown_image", {"category_id": 3, "bbox": [1, 2, 3, 4]}),
    ],
)
def test_fields_that_are_missing(tmp_path, problem, annotation):
    dataset = load_coco(write_folder(tmp_path, [GOOD, annotation]), split="train")
    assert dataset.report.counts == {problem: 1} and len(dataset[0]["objects"]["bbox"]) == 1


@pytest.mark.parametrize("field", ["id", "file_name"])
def test_images_that_lack_a_field(tmp_path, field):
    path = write_folder(tmp_path, [GOOD]) / "train.json"
    content = json.loads(path.read_text())
    for image in content["images"][1:]:
        del image[field]
    path.write_text(json.dumps(content))
    dataset = load_coco(path)
    assert dataset.report.counts == {"bad_entry": 1} and len(dataset) == 1 and field in dataset.report.summary()
    with pytest.raises(ValueError, match="policy"):
        load_coco(path, policy="refuse")


@pytest.mark.parametrize(
    "mask", ["x", 5, [[1, 2, 3]], [[1, 2, 3, 4]], [["a"] * 6], {"size": [4, 4], "counts": [16]}, {"counts": [1]}]
)
def test_bad_masks_leave_their_box(tmp_path, mask):
    entries = [{**GOOD, "segmentation": mask}, {**GOOD, "segmentation": [[1, 2, 11, 2, 11, 14]]}, GOOD]
    folder = write_folder(tmp_path, entries)
    dataset = load_coco(folder, split="train", with_masks=True)
    assert dataset.report.counts == {"bad_mask": 1}
    assert [mask is None for mask in dataset[0]["objects"]["segmentation"]] == [True, False, True]
    assert load_coco(folder, split="train").report.counts == {}, "masks are checked only where they are asked for"


def test_objects365_and_gzip(tmp_path):
    """Patches of the first and the second version in one folder, as published."""
    names = ["images/v1/patch8/objects365_v1_00420917.jpg", "images/v2/patch16/objects365_v2_00908726.jpg"]
    for name in names:
        path = tmp_path / "train" / "/".join(name.split("/")[2:])
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(path)
    images = [{"id": n, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(names)]
    annotations = [{"id": 1, "image_id": 1, "category_id": 20, "bbox": [1.5, 2, 3, 4], "iscrowd": 0, "isfake": 0}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 20, "name": "Cabinet/shelf"}]}
    with gzip.open(tmp_path / "zhiyuan_objv2_train.json.gz", "wt") as file:
        json.dump(content, file)
    examples = list(load_coco(tmp_path / "zhiyuan_objv2_train.json.gz", tmp_path / "train"))
    assert [example["objects"]["category"] for example in examples] == [[], ["Cabinet/shelf"]]


def test_policies_are_checked():
    with pytest.raises(ValueError, match="ignore"):
        BoxReport("ignore")
    with pytest.raises(ValueError, match="degenerated"):
        BoxReport({"degenerated": "skip"})
    with pytest.raises(ValueError, match="clip"):
        BoxReport({"degenerate": "clip"})
    assert checked_box([0, 0, "1", 1], 4, 4, BoxReport(), "here") is None


def test_unreadable_and_wrong_images(tmp_path):
    write_folder(tmp_path, [GOOD], num_images=3)
    (tmp_path / "train" / "1.jpg").write_bytes(b"no image")
    dataset = load_coco(tmp_path, split="train")
    assert [example["image_id"] for example in dataset] == [0, 2]
    assert dataset[1]["image_id"] == 2
    assert dataset.report.counts == {"unreadable_image": 2}
    with pytest.raises(ValueError, match=r"1\.jpg"):
        load_coco(tmp_path, split="train", policy={"unreadable_image": "refuse"})[1]
    Image.new("RGB", (10, 10)).save(tmp_path / "train" / "2.jpg")
    assert [example["image_id"] for example in load_coco(tmp_path, split="train")] == [0]
    kept = load_coco(tmp_path, split="train", policy={"wrong_size": "keep"})
    assert kept[2]["image"].size == (10, 10)


def write_turned(folder, orientation, stored, size, box, mask=None):
    """One image of one white object, with an EXIF orientation, whose annotations say `size` and `box`."""
    x, y, w, h = STORED_BOX
    pixels = np.zeros((stored[1], stored[0]), dtype=np.uint8)
    pixels[y : y + h, x : x + w] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "a.png", exif=exif)
    image = {"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}
    annotation = {"id": 2, "image_id": 1, "category_id": 7, "bbox": box, "segmentation": mask}
    content = {"images": [image], "annotations": [annotation], "categories": CATEGORIES}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


STORED_BOX = (3, 2, 6, 4)


def shown_box(image):
    """x, y, width, height of what is white."""
    rows, columns = np.nonzero(np.asarray(image)[:, :, 0] > 128)
    return [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stored", [(30, 20), (24, 24)])
@pytest.mark.parametrize("kind", ["polygon", "rle", None])
def test_images_are_upright_and_their_boxes_with_them(tmp_path, orientation, stored, kind):
    """The annotations were made on the stored pixels, and a square image does not show it."""
    x, y, w, h = STORED_BOX
    mask = np.zeros(stored[::-1], dtype=bool)
    mask[y : y + h, x : x + w] = True
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    segmentation = {"polygon": polygon, "rle": encode_mask(mask), None: None}[kind]
    path = write_turned(tmp_path, orientation, stored, stored, list(STORED_BOX), segmentation)
    dataset = load_coco(path, with_masks=True, boxes_on="stored")
    for _ in range(2):
        example = dataset[0]
        assert example["image"].size == (example["width"], example["height"])
        assert example["objects"]["bbox"] == [shown_box(example["image"])]
        if kind is not None:
            mask = decode_mask(example["objects"]["segmentation"][0], example["height"], example["width"])
            np.testing.assert_array_equal(mask, np.asarray(example["image"])[:, :, 0] > 128)
    assert dataset.report.counts == ({} if orientation == 1 else {"turned": 1}), "counted once, not at every reading"
    if orientation >= 5 and stored[0] != stored[1]:
        assert load_coco(path)[0]["objects"]["bbox"] == [shown_box(example["image"])], "the size tells"


def test_annotations_of_the_upright_image_stay(tmp_path):
    box = [14, 3, 4, 6]  # STORED_BOX, turned clockwise
    dataset = load_coco(write_turned(tmp_path, 6, (30, 20), (20, 30), box))
    assert dataset[0]["objects"]["bbox"] == [box] == [shown_box(dataset[0]["image"])]
    assert dataset.report.counts == {}
    # The size of an image on its head does not tell: upright is the default, and the report says so.
    dataset = load_coco(write_turned(tmp_path, 3, (30, 20), (30, 20), [21, 14, 6, 4]))
    assert dataset[0]["objects"]["bbox"] == [shown_box(dataset[0]["image"])]
    assert dataset.report.counts == {"orientation_unclear": 1} and "boxes_on" in dataset.report.summary()
    with pytest.raises(ValueError, match="boxes_on"):
        load_coco(tmp_path / "a.json", boxes_on="sideways")


def test_masks_of_every_kind():
    pytest.importorskip("pycocotools")
    polygon = [[2, 1, 6, 1, 6, 4, 2, 4]]
    expected = np.zeros((5, 8), dtype=bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(decode_mask(polygon, 5, 8), expected)
    np.testing.assert_array_equal(decode_mask(encode_mask(expected), 5, 8), expected)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], expected.T.ravel(), [0]]).astype(int)))
    counts = np.diff(np.concatenate([[0], runs, [expected.size]])).tolist()
    np.testing.assert_array_equal(decode_mask({"size": [5, 8], "counts": counts}, 5, 8), expected)
    np.testing.assert_array_equal(decode_mask(expected, 5, 8), expected)
    assert decode_mask(None, 5, 8) is None and decode_mask([], 5, 8) is None
    assert stack_masks([polygon, None], 5, 8).sum(axis=(1, 2)).tolist() == [12, 0]
    assert stack_masks([], 5, 8).shape == (0, 5, 8)
    with pytest.raises(ValueError, match=r"a mask of \(height, width\)"):
        decode_mask(encode_mask(expected), 8, 5)
    with pytest.raises(ValueError, match="not a segmentation"):
        decode_mask("polygon", 5, 8)


def test_select_and_filter(tmp_path):
    dataset = load_coco(write_folder(tmp_path, [GOOD], num_images=3), split="train")
    assert [example["image_id"] for example in dataset.select([2, 0, 0])] == [2, 0, 0]
    assert len(dataset.filter(lambda record: record["objects"]["bbox"])) == 1
    assert dataset[-1]["image_id"] == 2
    with pytest.raises(IndexError):
        dataset[3]


def test_real_images(data_dir):
    coco = load_coco(data_dir / "coco-mini", split="train", with_masks=True, policy={"crowd": "keep"})
    assert len(coco) == 343 and len(coco.class_names) == 80
    assert sum(len(record["objects"]["bbox"]) for record in coco.records) == 2974 - sum(
        count for problem, count in coco.report.counts.items() if problem != "crowd"
    )
    example = coco[0]
    masks = stack_masks(example["objects"]["segmentation"], *example["image"].size[::-1])
    for (x, y, w, h), mask in zip(example["objects"]["bbox"], masks, strict=True):
        if mask.any():
            rows, columns = np.nonzero(mask)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(edges, [x, y, x + w, y + h], atol=2)
    raccoon = load_coco(data_dir / "raccoon", split="val", policy="refuse")
    assert len(raccoon) == 30 and raccoon[3]["labels"] == ["raccoon"]
    for name in ("chess", "blood-cells", "microcontrollers", "nuts"):
        assert len(load_coco(data_dir / name, split="test")) > 5


def test_odinw_folders_name_their_file_otherwise(tmp_path):
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "fish"}]}
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "annotations_without_background.json").write_text(json.dumps(content))
    assert find_annotation_file(tmp_path, "val").parent.name == "valid"
    assert load_coco(tmp_path, split="train").class_names == ["fish"]
    with pytest.raises(FileNotFoundError, match="splits found: train, valid"):
        find_annotation_file(tmp_path, "test")
