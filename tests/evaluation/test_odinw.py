"""ODinW's sets, prompts and tables."""

import pytest

from transformers_glipv2.evaluation.odinw import ODINW_13, ODINW_35, odinw_sets, odinw_table, summarize_odinw


def test_the_sets():
    assert (len(ODINW_13), len(ODINW_35)) == (13, 35)
    assert set(ODINW_13) < set(ODINW_35)
    assert all(name == entry.name and entry.labels for name, entry in ODINW_35.items())
    assert len(ODINW_35["PascalVOC"].classes) == 20 and len(ODINW_35["OxfordPets_by-breed"].classes) == 37
    assert list(odinw_sets(["Raccoon", "pothole"])) == ["Raccoon", "pothole"]
    assert odinw_sets("13") == ODINW_13
    with pytest.raises(ValueError, match="ODinW has no Racoon"):
        odinw_sets("Racoon")


def test_published_prompts_point_at_the_names():
    text, spans = ODINW_35["Aquarium"].sentence()
    assert "penguin , which is black and white. puffin" in text
    assert [text[slice(*span)] for span in spans] == ODINW_35["Aquarium"].labels
    text, spans = ODINW_35["pothole"].sentence()
    assert text == "there are some holes on the road" and [text[slice(*span)] for span in spans] == ["holes"]
    assert ODINW_35["Raccoon"].sentence() is None


def test_names_are_cleaned_and_blank_ones_left_out():
    assert ODINW_35["brackishUnderwater"].labels[4] == "small fish"
    chess = ODINW_35["ChessPieces"]
    assert len(chess.labels) == 12 and chess.category_ids == list(range(2, 14))


def test_files_of_both_layouts(tmp_path):
    assert ODINW_35["Raccoon"].annotation_file(tmp_path, "val") == (
        tmp_path / "Raccoon/Raccoon.v2-raw.coco/valid/annotations_without_background.json"
    )
    assert ODINW_35["pistols"].annotation_file(tmp_path) == (
        tmp_path / "pistols/export/test_annotations_without_background.json"
    )
    with pytest.raises(ValueError, match="choose train, val or test"):
        ODINW_35["pistols"].annotation_file(tmp_path, "valid")


def test_average_and_median():
    assert summarize_odinw({"a": 0.1, "b": 0.2, "c": 0.9}) == pytest.approx({"average": 0.4, "median": 0.2})
    with pytest.raises(ValueError, match="no AP for b"):
        summarize_odinw({"a": 0.1, "b": -1})
    with pytest.raises(ValueError, match="any set"):
        summarize_odinw({})


def test_table_of_settings_and_seeds():
    table = odinw_table(
        {
            "zero-shot": {"a": 0.5, "b": 0.25},
            "1-shot": [{"a": 0.5, "b": 0.3}, {"a": 0.7, "b": 0.3}],
            "full": {"a": 0.8},
        }
    )
    assert table.splitlines() == [
        "| set | zero-shot | 1-shot | full |",
        "|---|---:|---:|---:|",
        "| a | 50.0 | 60.0 ± 14.1 | 80.0 |",
        "| b | 25.0 | 30.0 ± 0.0 | - |",
        "| **average** | 37.5 | 45.0 ± 7.1 | - |",
        "| **median** | 37.5 | 45.0 ± 7.1 | - |",
    ]
