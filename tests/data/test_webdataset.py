"""Shards: written and read back, dealt out to processes and workers without overlap, and gone on with exactly."""

import io
import json
import pickle
import tarfile
from collections import Counter

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from tests.tiny_training import drawn_coco
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.hub import load_hub
from transformers_glipv2.data.hub_export import to_hf_dataset
from transformers_glipv2.data.lanes import LaneStream
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.data.webdataset import find_shards, load_webdataset, write_webdataset
from transformers_glipv2.training.batches import StepBatches


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return load_coco(drawn_coco(tmp_path_factory.mktemp("coco"), train=24), split="train")


@pytest.fixture(scope="module")
def shards(coco, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_webdataset(coco, folder, samples_per_shard=3)
    return folder


def image_bytes(suffix="png"):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, suffix)
    return buffer.getvalue()


def write_tar(path, **files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def same(example, other):
    pixels = example["image"].tobytes() == other["image"].tobytes()
    return pixels and all(example[name] == other[name] for name in ("kind", "image_id", "labels", "objects"))


def test_what_is_written_is_read_back(coco, shards):
    assert [path.rsplit("/")[-1] for path in find_shards(shards)] == [f"{index:06d}.tar" for index in range(8)]
    stream = load_webdataset(shards)
    assert all(same(example, expected) for example, expected in zip(stream, coco, strict=True))
    # Another pass, and a pattern.
    assert [example["image_id"] for example in load_webdataset(f"{shards}/00000[01].tar")] == list(range(6))


def test_shuffled_streams_hold_the_same(shards):
    stream = load_webdataset(shards, shuffle_buffer=3, seed=1)
    ids = [example["image_id"] for example in stream]
    assert sorted(ids) == list(range(24)) and ids != sorted(ids)


def test_captions_and_usual_detection_files(tmp_path):
    write_tar(
        tmp_path / "0.tar",
        a__jpg=image_bytes("jpeg"),
        a__txt=b"a red square",
        b__jpg=image_bytes("jpeg"),
        b__txt=b"more",
    )
    assert [example["text"] for example in load_webdataset(tmp_path)] == ["a red square", "more"]
    objects = {"objects": {"bbox": [[1, 2, 30, 20]], "category": [1]}}
    shard = write_tar(tmp_path / "1.tar", a__png=image_bytes(), a__json=json.dumps(objects).encode())
    (example,) = load_webdataset(shard, class_names=["cat", "dog"])
    assert example["objects"]["category"] == ["dog"] and example["labels"] == ["cat", "dog"]


def test_broken_shards_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shard at"):
        load_webdataset(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="no whole tar file"):
        load_webdataset(tmp_path)
    for files, message in (
        ({"a__json": b"{}"}, "has no image"),
        ({"a__png": image_bytes()}, "neither .json nor .txt"),
        ({"a__png": image_bytes(), "a__json": b"{"}, "cannot be read"),
        ({"a__png": image_bytes(), "a__json": b"[]"}, "not an object"),
    ):
        write_tar(tmp_path / "0.tar", **files)
        with pytest.raises(ValueError, match=message):
            load_webdataset(tmp_path)
    with pytest.raises(ValueError, match="samples_per_shard"):
        write_webdataset([], tmp_path, samples_per_shard=0)


def parquet_shards(coco, folder):
    dataset = to_hf_dataset(coco)
    for index in range(8):
        dataset.shard(8, index, contiguous=True).to_parquet(folder / f"{index}.parquet")
    return load_hub("parquet", data_files=sorted(map(str, folder.glob("*.parquet"))), streaming=True)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_every_reader_has_shards_of_its_own_and_any_sample_can_be_asked_for(kind, coco, shards, tmp_path):
    stream = load_webdataset(shards) if kind == "webdataset" else parquet_shards(coco, tmp_path)
    lanes = LaneStream(stream, 4)
    # Two passes of two shards of three for each of four lanes.
    ids = [lanes[index]["image_id"] for index in range(48)]
    of_lane = [ids[lane::4] for lane in range(4)]
    assert all(sorted(one[:6]) == sorted(one[6:]) for one in of_lane)
    assert Counter(number for one in of_lane for number in one[:6]) == Counter(range(24))
    assert all(len({number // 3 for number in one}) == 2 for one in of_lane)
    again = pickle.loads(pickle.dumps(lanes))
    assert [again[index]["image_id"] for index in (41, 7, 7, 12)] == [ids[index] for index in (41, 7, 7, 12)]


def test_few_shards_are_read_in_turn(shards):
    lanes = LaneStream(load_webdataset(f"{shards}/00000[01].tar"), 4)
    assert sorted(lanes[index]["image_id"] for index in range(4)) == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="fewer images in a step"):
        LaneStream(load_webdataset(f"{shards}/000000.tar"), 8)[7]


def test_an_unreadable_image_is_replaced_by_the_next(shards, tmp_path):
    files = {}
    for name in "abcd":
        files[f"{name}__png"] = b"no image" if name == "b" else image_bytes()
        files[f"{name}__json"] = json.dumps({"kind": "caption", "text": name, "image_id": name}).encode()
    write_tar(tmp_path / "0.tar", **files)
    lanes = LaneStream(load_webdataset(tmp_path), 1)
    assert [lanes[index]["text"] for index in range(6)] == ["a", "c", "c", "d", "a", "c"]
    files = {name: b"no image" if name.endswith("png") else content for name, content in files.items()}
    write_tar(tmp_path / "0.tar", **files)
    with pytest.raises(ValueError, match="can be read"):
        LaneStream(load_webdataset(tmp_path), 1)[2]


def mixture(shards, coco, length=64):
    return MixtureDataset([load_webdataset(shards), coco], [3, 1], length=length, lanes=8, block_size=8)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_a_mixture_without_overlap(shards, coco, workers):
    """Steps of four images and two readers: each process opens shards of its own, and all give what one would."""
    alone = [mixture(shards, coco)[index] for index in range(64)]
    opened = []
    for process in range(2):
        batches = StepBatches(4, 16, 0, 1, process, 2)
        loader = DataLoader(mixture(shards, coco), batch_sampler=batches, num_workers=workers, collate_fn=list)
        examples = [example for batch in loader for example in batch]
        assert all(same(example, alone[example["sample_index"]]) for example in examples)
        opened.append({example["image_id"] // 3 for example in examples if example["source"] == 0})
        resumed = DataLoader(
            mixture(shards, coco),
            batch_sampler=StepBatches(4, 16, 9, 1, process, 2),
            num_workers=workers,
            collate_fn=list,
        )
        later = [example for batch in resumed for example in batch]
        assert [example["sample_index"] for example in later] == [e["sample_index"] for e in examples[18:]]
        assert all(same(example, alone[example["sample_index"]]) for example in later)
    assert not opened[0] & opened[1] and len(opened[0] | opened[1]) == 8
