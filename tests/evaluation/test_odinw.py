"""ODinW's sets, prompts and tables."""

import pytest

from transformers_glipv2.evaluation.odinw import ODINW_13, ODINW_35, odinw_sets, odinw_table, summarize_odinw


def test_the_sets():
    assert (len(ODINW_13), len(ODINW_35)) == (13, 35)
    assert set(ODINW_13) < set(ODINW_35)
    assert all(name == entry.name and entry.labels for name, entry in ODINW_35.items())
    assert list(odinw_sets(["Raccoon", "pothole"])) == ["Raccoon", "pothole"]
    assert odinw_sets("13") == ODINW_13
    with pytest.raises(ValueError, match="ODinW has no Racoon"):
        odinw_sets("Racoon")


# Categories in GLIP's configurations. Their NUM_CLASSES is one more, except in boggleBoards (35), dice (71), pistols
# (297) and selfdrivingCar (3000).
COUNTS = {
    "AerialMaritimeDrone_large": 5,
    "AerialMaritimeDrone_tiled": 5,
    "AmericanSignLanguageLetters": 26,
    "Aquarium": 7,
    "BCCD": 3,
    "ChessPieces": 13,
    "CottontailRabbits": 1,
    "DroneControl": 8,
    "EgoHands_generic": 1,
    "EgoHands_specific": 4,
    "HardHatWorkers": 3,
    "MaskWearing": 2,
    "MountainDewCommercial": 1,
    "NorthAmericaMushrooms": 2,
    "OxfordPets_by-breed": 37,
    "OxfordPets_by-species": 2,
    "PKLot": 2,
    "Packages": 1,
    "PascalVOC": 20,
    "Raccoon": 1,
    "ShellfishOpenImages": 3,
    "ThermalCheetah": 2,
    "UnoCards": 15,
    "VehiclesOpenImages": 5,
    "WildfireSmoke": 1,
    "boggleBoards": 36,
    "brackishUnderwater": 6,
    "dice": 6,
    "openPoetryVision": 43,
    "pistols": 1,
    "plantdoc": 30,
    "pothole": 1,
    "selfdrivingCar": 11,
    "thermalDogsAndPeople": 2,
    "websiteScreenshots": 8,
}


def test_each_set_has_its_published_number_of_distinct_classes():
    assert {name: len(entry.classes) for name, entry in ODINW_35.items()} == COUNTS
    assert all(len(set(entry.classes)) == len(entry.classes) for entry in ODINW_35.values())
    assert ODINW_35["boggleBoards"].classes[26:28] == ("t", "t\\")


def test_published_prompts_point_at_the_names():
    with_prompt = {name for name, entry in ODINW_35.items() if entry.sentence() is not None}
    assert with_prompt == {"Aquarium", "ChessPieces", "EgoHands_generic", "Packages", "pothole"}
    text, spans = ODINW_35["Aquarium"].sentence()
    assert "penguin , which is black and white. puffin" in text
    assert [text[slice(*span)] for span in spans] == ODINW_35["Aquarium"].labels
    text, spans = ODINW_35["pothole"].sentence()
    assert text == "there are some holes on the road" and [text[slice(*span)] for span in spans] == ["holes"]
    text, spans = ODINW_35["ChessPieces"].sentence()
    assert text.startswith(" . black bishop. black king. ")
    assert [text[slice(*span)] for span in spans] == ODINW_35["ChessPieces"].labels


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
    voc = tmp_path / "PascalVOC"
    assert ODINW_35["PascalVOC"].annotation_file(tmp_path) == voc / "valid/annotations_without_background.json"
    assert ODINW_35["PascalVOC"].annotation_file(tmp_path, "train").parent == voc / "train"
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
