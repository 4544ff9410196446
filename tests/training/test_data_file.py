"""Data files: what is read, what is refused and how, loaders of one's own."""

from pathlib import Path

import pytest
from accelerate import Accelerator
from datasets import Dataset, Image

from tests.tiny_training import drawn_coco, tiny_processor
from transformers_glipv2.training import (
    DataFile,
    load_sources,
    make_collator,
    make_evaluator,
    make_mixture,
    read_data_file,
)


def write_data_file(folder: Path, text: str) -> Path:
    (folder / "data.yaml").write_text(text)
    return folder / "data.yaml"


def test_data_file_mixes_by_weight(tmp_path):
    drawn_coco(tmp_path / "coco", train=4, val=2)
    (tmp_path / "copy").symlink_to(tmp_path / "coco")
    text = "sources:\n  - {kind: coco, path: coco, split: train, weight: 3}\n"
    text += '  - {kind: "transformers_glipv2.data.formats.coco:load_coco", path: copy, split: val}\n'
    text += "sizes: [64]\nmlm_probability: 0.5\naugment: {flip: 1.0}\nevaluation: {path: coco, split: val}\n"
    data = read_data_file(write_data_file(tmp_path, text), allow_custom_loaders=True)
    mixture = make_mixture(data, 250, 4, seed=0)
    assert [len(source) for source in mixture.sources] == [4, 2]
    sources = [mixture.locate(index)[0] for index in range(1000)]
    assert sources.count(0) == 750
    processor = tiny_processor()
    batch = make_collator(data, processor, mixture, 4, seed=0)([mixture[index] for index in range(4)])
    assert {"pixel_values", "input_ids", "labels", "mlm_labels"} <= set(batch)
    assert make_evaluator(data, Accelerator(), processor).labels == ["cat", "dog"]


SOURCES = "sources: [{kind: coco, path: x}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sizes: [64]", "lists no `sources`"),
        ("- 1", "lists no `sources`"),
        ("sources: {kind: coco, path: x}", r"`sources` of .*data.yaml is {.*expected a list"),
        ("sources: [coco]", "source 0 of .*data.yaml is 'coco'; expected keys with values"),
        ("sources: [{kind: coco}]", "it needs `kind`"),
        ("sources: [{kind: 3, path: x}]", "`kind` of source 0 of .*data.yaml is 3"),
        ("sources: [{kind: coco, path: 3}]", "`path` of source 0 of .*data.yaml is 3"),
        ("sources: [{kind: coco, path: []}]", r"`path` of source 0 of .*data.yaml is \[\]"),
        ("sources: [{kind: cocoo, path: x}]", r"has 'cocoo' \(did you mean 'coco'\?\)"),
        ("sources: [{kind: coco, path: x, weight: -1}]", "`weight` of source 0 of .*data.yaml is -1"),
        ("sources: [{kind: coco, path: x, weight: 0}]", "`weight` of source 0 of .*data.yaml is 0; leave out"),
        ("sources: [{kind: coco, path: x, weight: .nan}]", "`weight` of source 0 of .*data.yaml is nan"),
        ("sources: [{kind: coco, path: x, weight: heavy}]", "`weight` of source 0 .* is 'heavy'; expected a number"),
        (SOURCES + "size: [64]", r"has 'size' \(did you mean 'sizes'\?\)"),
        (SOURCES + "sizes: [-64]", r"`sizes\[0\]` of .*data.yaml is -64; expected a whole number of pixels"),
        (SOURCES + "sizes: [64, 0.5]", r"`sizes\[1\]` of .*data.yaml is 0.5"),
        (SOURCES + "sizes: [true]", r"`sizes\[0\]` of .*data.yaml is True"),
        (SOURCES + "sizes: 64", "`sizes` of .*data.yaml is 64; expected a list"),
        (SOURCES + "sizes: []", "`sizes` of .*data.yaml is"),
        (SOURCES + "max_size: 0", "`max_size` of .*data.yaml is 0"),
        (SOURCES + "sizes: [64, 96]\nmax_size: 80", "`max_size` of .*data.yaml is 80, less than the shortest edge 96"),
        (SOURCES + "mlm_probability: 1.5", "`mlm_probability` of .*data.yaml is 1.5; expected a number from 0 to 1"),
        (SOURCES + "mlm_probability: 1", "`mlm_probability` of .*data.yaml is 1"),
        (SOURCES + "mlm_probability: half", "`mlm_probability` of .*data.yaml is 'half'"),
        (SOURCES + "max_negatives: -1", "`max_negatives` of .*data.yaml is -1"),
        (SOURCES + "augment: [flip]", r"`augment` of .*data.yaml is \['flip'\]"),
        (SOURCES + "augment: {flipp: 1}", r"`augment` of .* has 'flipp' \(did you mean"),
        (SOURCES + "augment: {flip: 2}", "`augment.flip` of .*data.yaml is 2"),
        (SOURCES + "evaluation: coco", "`evaluation` of .*data.yaml is 'coco'"),
        (SOURCES + "evaluation: {split: val}", "`evaluation` of .*data.yaml is {.*needs the `path`"),
        (SOURCES + "evaluation: {path: x, max_samples: 0}", "`max_samples` of `evaluation` of .*data.yaml is 0"),
        (SOURCES + "evaluation: {path: x, max_images: 4}", "`evaluation` of .*data.yaml has 'max_images'"),
        (SOURCES + "evaluation: {path: x, size: {shortest_edge: -5}}", "`size.longest_edge` of `evaluation` of"),
        ("sources: [{kind: coco, path: x", "data.yaml is no YAML"),
        ('sources: "' + "[" * 3000, "data.yaml is no YAML"),
    ],
)
def test_data_file_refuses_what_is_wrong_and_names_it(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_data_file(write_data_file(tmp_path, text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("splitt: train", r"source 0 of .*data.yaml has 'splitt' \(did you mean 'split'\?\)"),
        ("split: train, with_mask: true", r"has 'with_mask' \(did you mean 'with_masks'\?\)"),
    ],
)
def test_options_that_a_loader_does_not_take_are_named(tmp_path, options, message):
    drawn_coco(tmp_path / "coco", train=1)
    data = read_data_file(write_data_file(tmp_path, f"sources: [{{kind: coco, path: coco, {options}}}]"))
    with pytest.raises(ValueError, match=message):
        load_sources(data)


def test_options_that_a_loader_lacks_are_named(tmp_path):
    data = read_data_file(write_data_file(tmp_path, "sources: [{kind: lvis, path: x}]"))
    with pytest.raises(ValueError, match=r"source 0 of .*data.yaml: missing a required argument: 'image_folder'"):
        load_sources(data)


CALLED = []


def own_loader(path: str, number: int = 0) -> list[dict]:
    CALLED.append((path, number))
    return [{}]


def test_loaders_of_ones_own_run_only_where_they_are_allowed(tmp_path):
    CALLED.clear()
    kind = f"{__name__}:own_loader"
    for text in (f'sources: [{{kind: "{kind}", path: x}}]', f'{SOURCES}evaluation: {{kind: "{kind}", path: x}}'):
        with pytest.raises(ValueError, match=r"could run any program on this machine.*--allow_custom_loaders"):
            read_data_file(write_data_file(tmp_path, text))
    with pytest.raises(ValueError, match="'os:system', a function that would be imported and called"):
        load_sources(DataFile(tmp_path, [{"kind": "os:system", "path": "true"}]))
    assert CALLED == []
    text = f'sources: [{{kind: "{kind}", path: x, number: 2}}]'
    assert load_sources(read_data_file(write_data_file(tmp_path, text), allow_custom_loaders=True))[0] == [[{}]]
    assert CALLED == [("x", 2)]
    with pytest.raises(ValueError, match=r"cannot be imported: .*no_such_module"):
        load_sources(DataFile(tmp_path, [{"kind": "no_such_module:f", "path": "x"}], allow_custom_loaders=True))


def test_a_local_folder_of_the_hub_kind(tmp_path):
    drawn_coco(tmp_path / "coco", train=2)
    boxes = {"bbox": [[8.0, 6.0, 36.0, 36.0]], "category": ["cat"]}
    rows = [
        {"image": str(tmp_path / f"coco/train/{index}.png"), "image_id": index, "objects": boxes} for index in (0, 1)
    ]
    (tmp_path / "parquet").mkdir()
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(tmp_path / "parquet" / "train.parquet")
    data = read_data_file(write_data_file(tmp_path, "sources: [{kind: hub, path: parquet, class_names: [cat]}]"))
    ((dataset,), _) = load_sources(data)
    assert [row["image"].size for row in dataset] == [(96, 64)] * 2


def test_copy_paste_needs_masks(tmp_path):
    drawn_coco(tmp_path / "coco", train=2)
    text = "sources: [{kind: coco, path: coco, split: train}]\naugment: {copy_paste: 0.5}"
    data = read_data_file(write_data_file(tmp_path, text))
    with pytest.raises(ValueError, match="with_masks: true"):
        make_collator(data, tiny_processor(), make_mixture(data, 2, 2, seed=0), 2, seed=0)
    assert len(load_sources(data)[0]) == 1
