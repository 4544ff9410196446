"""Large COCO files: the cache gives what reading the file as a whole gives, is shared, and made anew when needed."""

import gzip
import json
import multiprocessing
import os
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.formats.test_coco import GOOD, write_folder
from transformers_glipv2.data.dataset import PackedRecords, iterate_annotations
from transformers_glipv2.data.formats import coco_cache
from transformers_glipv2.data.formats.arrow_records import ArrowRecords
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.formats.json_index import NotIndexableError, index_json
from transformers_glipv2.data.masks import encode_mask

MASK = np.zeros((30, 40), dtype=bool)
MASK[2:14, 1:11] = True
OUTCOMES = ("class_names", "category_ids", "missing_images")


def outcome(path, folder, **options):
    """All that `load_coco` gives, or the error it raises."""
    try:
        dataset = load_coco(path, folder, **options)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    report = dataset.report
    found = [list(dataset.records), *map(sorted, (report.counts.items(), report.first.items(), report._noted))]
    return [*found, *(getattr(dataset, name) for name in OUTCOMES)]


def is_cached(dataset):
    return isinstance(dataset.records, ArrowRecords)


# Mostly right, sometimes odd: what is harmless, what is counted, and what is refused.
def mostly(usual, *odd):
    return st.integers(0, 30).flatmap(lambda number: st.sampled_from(odd) if odd and number == 0 else usual)


numbers = mostly(st.floats(0, 12, width=32), -30, 60, 1e300, "7", None, float("nan"), True, 10**400)
boxes = mostly(st.lists(numbers, min_size=4, max_size=4), None, [], [1, 2, 3], "box", {"x": 1}, [1, 2, [3], 4])
masks = mostly(
    st.sampled_from([[[1, 2, 11, 2, 11, 14]], encode_mask(MASK), None, []]),
    *([[1, 2]], {"size": [9, 9], "counts": "0"}, 5),
)
annotations = st.fixed_dictionaries(
    {
        "image_id": mostly(st.integers(0, 5), 77, "3", 3.0, None, [1], True),
        "category_id": mostly(st.integers(1, 3), 9, "2", 2.0, None, {}),
        "bbox": boxes,
    },
    optional={
        "id": st.integers(0, 99),
        "area": mostly(st.floats(0, 500), None, "12", "large", float("inf")),
        "iscrowd": mostly(st.just(0), 1, None, False, 2, "no"),
        "segmentation": masks,
        "note": st.text(max_size=6) | st.just('}, {"[\\'),
    },
)
images = st.fixed_dictionaries(
    {
        "id": mostly(st.integers(0, 5), "3", 4.0, None, 2**70, True),
        "file_name": mostly(
            st.integers(0, 5).map("{}.png".format), "sub/1.png", "../0.png", "gone.png", 7, "", "\ud800"
        ),
    },
    optional={
        "width": mostly(st.just(40), None, "40", 40.0, 0, -1, "wide", 2**70),
        "height": mostly(st.just(30), None, 31),
    },
)
categories = st.fixed_dictionaries(
    {"id": mostly(st.integers(1, 3), "2", None), "name": mostly(st.sampled_from(["cat", "dog", "[x]"]), "", 5, None)},
    optional={"supercategory": st.sampled_from(["cat", "pets"])},
)


USUAL = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 2, "name": "bird"}]


@st.composite
def files(draw):
    """The text of a COCO file."""
    content = {
        "images": draw(st.lists(images, min_size=2, max_size=8, unique_by=lambda image: repr(image["id"]))),
        "annotations": draw(st.lists(annotations, min_size=2, max_size=12)),
        "categories": draw(st.sampled_from([USUAL] * 5 + [draw(st.lists(categories, max_size=4))])),
        "info": {"images": [1, [2]], "text": '"annotations": [{'},
        "version": draw(st.none() | st.text(max_size=4)),
    }
    keys = draw(st.permutations(list(content)))
    layout = draw(st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"separators": (" ,\n ", " : ")}]))
    text = json.dumps({key: content[key] for key in keys}, ensure_ascii=draw(st.booleans()), **layout)
    return text.encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "images"
    folder.mkdir()
    for index in range(4):
        Image.new("RGB", (40, 30), (index, 0, 0)).save(folder / f"{index}.png")
    Image.new("RGB", (40, 30)).save(folder.parent / "0.png")
    return folder


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=files(),
    policy=st.sampled_from(["skip", "skip", "skip", "refuse", {"crowd": "keep", "out_of_image": "keep"}]),
    flags=st.fixed_dictionaries({"with_masks": st.booleans(), "keep_empty": st.booleans()}),
    boxes_on=st.sampled_from(["auto", "stored"]),
)
def test_cache_gives_what_the_file_gives(annotation_cache, image_folder, text, policy, flags, boxes_on):
    path = image_folder.parent / "annotations.json"
    path.write_bytes(text)
    options = {"policy": policy, "boxes_on": boxes_on, **flags}
    coco_cache.CACHED_FROM = 1 << 40
    whole = outcome(path, image_folder, **options)
    coco_cache.CACHED_FROM = 0
    made, opened = (outcome(path, image_folder, **options) for _ in range(2))
    # Through json, since NaN is not equal to itself, and 1 is to True.
    assert repr(made) == repr(whole)
    assert repr(opened) == repr(whole)


@settings(max_examples=150, deadline=None)
@given(text=files(), position=st.floats(0, 1, exclude_max=True), byte=st.sampled_from(b'{}[],:"\\\n\x00 x1\xff'))
def test_damaged_files_are_not_indexed(tmp_path_factory, text, position, byte):
    """What Python does not take for JSON is not taken for an index of it either."""
    index = int(position * len(text))
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(text[:index] + bytes([byte]) + text[index + 1 :])
    keys = ("images", "annotations", "categories")
    try:
        with open(path, "rb") as file:
            lists = {key: list(found.entries(file)) for key, found in index_json(path, keys).items()}
    except NotIndexableError:
        return
    content = json.loads(path.read_bytes())
    assert repr(lists) == repr({key: content[key] for key in keys})


def test_blocks_of_the_file_do_not_matter(tmp_path, monkeypatch):
    content = {"images": [{"id": 1, "é": 'a"}\\'}] * 9, "annotations": [{"a": [[1], {"b": "]"}]}] * 5}
    text = json.dumps(content, indent=1)
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    for block in (1, 2, 7, 64):
        monkeypatch.setattr("transformers_glipv2.data.formats.json_index._BLOCK", block)
        with open(path, "rb") as file:
            lists = {
                key: list(found.entries(file)) for key, found in index_json(path, ("annotations", "images")).items()
            }
        assert lists == content


def test_cache_is_used_and_can_be_sent_to_workers(annotation_cache, tmp_path):
    folder = write_folder(tmp_path, [GOOD, {**GOOD, "image_id": 1, "bbox": [0, 0, 900, 900]}])
    dataset = load_coco(folder, split="train")
    assert is_cached(dataset)
    assert dataset.report.counts == {"out_of_image": 1} or dataset.report.counts == {"mostly_outside": 1}
    sent = pickle.loads(pickle.dumps(dataset))
    assert list(sent.records) == list(dataset.records) and sent[1]["image"].size == (40, 30)
    assert dataset.records[-1] == dataset.records[1] == dataset.records[0:2][1]
    with pytest.raises(IndexError, match="record 2 of 2"):
        dataset.records[2]
    assert len(dataset.select([1, 1])) == 2
    for indices in ([0, 1], [1], [1, 0], [1, 1], []):
        some = dataset.select(indices)
        expected = [record_parts(dataset.records[index]) for index in indices]
        assert [(path, list(names), np.asarray(boxes).tolist()) for path, names, boxes in parts_of(some)] == expected
    packed = PackedRecords(dataset.records)
    assert list(iterate_annotations(packed)) == [record_parts(record) for record in packed]


def parts_of(dataset):
    return iterate_annotations(dataset.records)


def record_parts(record):
    return record["image_path"], record["objects"]["category"], record["objects"]["bbox"]


def test_compressed_files(annotation_cache, tmp_path):
    path = write_folder(tmp_path, [GOOD]) / "train.json"
    packed = tmp_path / "train.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert is_cached(load_coco(packed)) and list(load_coco(packed).records) == list(load_coco(path).records)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        load_coco(packed)


def _load(path, seen, results):
    build = coco_cache._build

    def counted(*args):
        with seen.get_lock():
            seen.value += 1
        return build(*args)

    coco_cache._build = counted
    dataset = load_coco(path)
    results.put((is_cached(dataset), list(dataset.records)))


def test_one_process_makes_it_and_the_others_wait(annotation_cache, tmp_path):
    path = write_folder(tmp_path, [GOOD]) / "train.json"
    fork = multiprocessing.get_context("fork")
    seen, results = fork.Value("i", 0), fork.Queue()
    processes = [fork.Process(target=_load, args=(path, seen, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert seen.value == 1
    assert found == [(True, list(load_coco(path).records))] * 4


def damage_nothing_but_the_end(file):
    file.write_bytes(file.read_bytes()[:-50])


def damage_the_head(file):
    content = file.read_bytes()
    file.write_bytes(b"\0" * 100 + content[100:])


@pytest.mark.parametrize("suffix", ["arrow", "json"])
@pytest.mark.parametrize("damage", [os.remove, damage_nothing_but_the_end, damage_the_head])
def test_damaged_caches_are_made_anew(annotation_cache, tmp_path, suffix, damage):
    path = write_folder(tmp_path, [GOOD]) / "train.json"
    rows = list(load_coco(path).records)
    (file,) = annotation_cache.glob(f"*.{suffix}")
    damage(file)
    dataset = load_coco(path)
    assert is_cached(dataset) and list(dataset.records) == rows
    (arrow,) = annotation_cache.glob("*.arrow")
    assert json.loads(next(annotation_cache.glob("*.json")).read_text())["file"] == arrow.name
    assert not list(annotation_cache.glob("*building*"))


def test_a_changed_file_is_read_anew(annotation_cache, tmp_path):
    path = write_folder(tmp_path, [GOOD]) / "train.json"
    load_coco(path)
    text = path.read_text().replace('"bbox": [1,', '"bbox": [3,')
    path.write_text(text)
    assert load_coco(path).records[0]["objects"]["bbox"] == [[3, 2, 10, 12]]
    assert len(list(annotation_cache.glob("*.arrow"))) == 1


def test_images_that_come_and_go(annotation_cache, tmp_path):
    path = write_folder(tmp_path, [GOOD]) / "train.json"
    image = tmp_path / "train" / "1.jpg"
    content = image.read_bytes()
    image.unlink()
    assert load_coco(path).missing_images == (1, str(image))
    image.write_bytes(content)
    assert load_coco(path).missing_images == (0, None)
    image.unlink()
    assert load_coco(path).missing_images == (1, str(image))
    (tmp_path / "train" / "0.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="none of the 2 images"):
        load_coco(path)


def test_options_have_caches_of_their_own(annotation_cache, tmp_path):
    path = write_folder(tmp_path, [GOOD, {**GOOD, "iscrowd": 1}]) / "train.json"
    first = [load_coco(path, policy=policy).records[0] for policy in ("skip", {"crowd": "keep"})]
    assert [len(record["objects"]["bbox"]) for record in first] == [1, 2]
    assert "segmentation" in load_coco(path, with_masks=True).records[0]["objects"]
    assert [len(load_coco(path, keep_empty=keep)) for keep in (True, False)] == [2, 1]


def test_without_a_place_for_the_cache(tmp_path, monkeypatch):
    path = write_folder(tmp_path, [GOOD]) / "train.json"
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(coco_cache, "CACHED_FROM", 0)
    monkeypatch.setattr(coco_cache, "HF_HOME", str(tmp_path / "file"))
    dataset = load_coco(path)
    assert not is_cached(dataset) and len(dataset) == 2


def test_small_files_are_read_as_a_whole(tmp_path):
    assert not is_cached(load_coco(write_folder(tmp_path, [GOOD]), split="train"))
