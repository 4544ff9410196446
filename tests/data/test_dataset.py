import pickle

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tests.images.test_image_io import png_of_zeros
from transformers_glipv2.data.dataset import ImageDataset, ImageStream, PackedRecords, read_example
from transformers_glipv2.data.mixture import IndexedStream, MixtureDataset
from transformers_glipv2.data.schema import BoxReport


def records(folder, count=7):
    for index in range(count):
        path = folder / f"{index}.png"
        Image.new("RGB", (4, 3), (index, 0, 0)).save(path)
        yield {"image_id": index, "image_path": str(path), "kind": "caption", "text": f"number {index}"}


class Read:
    """Starts a pass that reports one problem."""

    def __init__(self, folder):
        self.records = list(records(folder))

    def __call__(self, report):
        report.add("bad_entry", "here")
        yield from self.records


def test_packed_records(tmp_path):
    plain = list(records(tmp_path))
    packed = PackedRecords(iter(plain))
    assert list(packed) == plain and len(packed) == 7 and packed[-1] == plain[-1] and packed[1:4] == plain[1:4]
    for copy in (pickle.loads(pickle.dumps(packed)), packed):
        assert copy[3] == plain[3]
    packed[3]["text"] = "changed"
    assert packed[3] == plain[3], "what is unpacked is a copy"
    with pytest.raises(IndexError, match="record 7 of 7"):
        packed[7]
    assert len(PackedRecords([])) == 0


def test_packed_records_are_small(tmp_path):
    """Far below a Python dict of lists, which takes some 1,500 bytes for this example."""
    objects = {"bbox": [[1.5, 2.5, 3.5, 4.5]] * 3, "category": ["dog", "cat", "dog"]}
    examples = [{**record, "objects": objects} for record in records(tmp_path, 3)] * 100
    assert len(PackedRecords(examples)._bytes) / len(examples) < 400


def test_selections_hold_no_copies(tmp_path):
    dataset = ImageDataset(PackedRecords(records(tmp_path)))
    part = dataset.select([5, 1, 1]).filter(lambda record: record["image_id"] < 5)
    assert [record["image_id"] for record in part.records] == [1, 1] and part.records[-1]["image_id"] == 1
    assert part.records[:1] == [dataset.records[1]] and len(part.select([])) == 0
    assert list(part.stream()) == list(part) and part[1]["text"] == "number 1"


def test_streams(tmp_path):
    stream = ImageStream(Read(tmp_path))
    expected = list(ImageDataset(stream.read_records.records))
    for _ in range(2):
        assert list(stream) == expected
        assert stream.report.counts == {"bad_entry": 1}, "a pass starts to count anew"
    loader = DataLoader(stream, batch_size=None, num_workers=2, collate_fn=lambda example: example["image_id"])
    assert sorted(loader) == list(range(7)), "workers share the examples"
    mixture = MixtureDataset([IndexedStream(stream)], length=9)
    loader = DataLoader(mixture, batch_size=None, num_workers=2, collate_fn=lambda example: example["image_id"])
    assert list(loader) == [0, 1, 2, 3, 4, 5, 6, 0, 1], "the sample index decides, whatever worker reads it"
    assert [mixture[sample]["image_id"] for sample in range(9)] == list(loader)


def test_streams_leave_out_unreadable_images(tmp_path):
    examples = list(records(tmp_path))
    (tmp_path / "2.png").write_bytes(b"none")
    stream = ImageDataset(examples).stream()
    assert [example["image_id"] for example in stream] == [0, 1, 3, 4, 5, 6]
    assert stream.report.counts == {"unreadable_image": 1}
    with pytest.raises(ValueError, match=r"2\.png"):
        list(ImageDataset(examples, report=BoxReport("refuse")).stream())


def test_images_in_other_forms(tmp_path):
    record = next(records(tmp_path))
    stored = (tmp_path / "0.png").read_bytes()
    image = Image.new("L", (4, 3))
    for source in (stored, image, lambda: stored, lambda: str(tmp_path / "0.png")):
        example = read_example({**record, "image_path": source}, None, BoxReport("refuse"))
        assert example["image"].mode == "RGB" and example["image"].size == (4, 3) and "labels" not in example
    report = BoxReport()
    assert read_example({**record, "image_path": b"none"}, None, report) is None
    assert "its bytes" in report.summary()


def test_images_are_opened_as_everywhere(tmp_path):
    """16 bits are scaled, files are upright, bombs are counted."""
    record = next(records(tmp_path)) | {"width": None, "height": None}
    grey = np.array([[20000, 50000]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    example = read_example({**record, "image_path": tmp_path / "deep.png"}, None, BoxReport("refuse"))
    assert np.array(example["image"])[0, :, 0].tolist() == [round(20000 / 257), round(50000 / 257)]

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "turned.jpg", exif=exif)
    for size in ((3, 4), (None, None), (4, 3)):
        annotated = {**record, "image_path": tmp_path / "turned.jpg", "width": size[0], "height": size[1]}
        assert read_example(annotated, None, BoxReport("refuse"))["image"].size == (3, 4)

    (tmp_path / "bomb.png").write_bytes(png_of_zeros(30000, 30000))
    report = BoxReport()
    assert read_example({**record, "image_path": tmp_path / "bomb.png"}, None, report) is None
    assert report.counts == {"unreadable_image": 1} and "bomb.png" in report.summary()
