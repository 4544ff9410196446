import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from transformers_glipv2.data.scenes.assets import SceneAssets

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "fetch_scene_assets.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fetch_scene_assets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def object_crop(size=(400, 200), box=(50, 40, 350, 160), colour=(210, 30, 30, 255)):
    image = Image.new("RGBA", size)
    image.paste(colour, box)
    return image


def test_object_crops_are_trimmed(script):
    assert script.trimmed(object_crop()).size == (256, 102)
    assert script.trimmed(Image.new("RGBA", (50, 50))) is None
    assert script.trimmed(object_crop(box=(50, 40, 60, 45))) is None


def test_a_source_is_taken_once(script, tmp_path):
    def broken():
        raise OSError("cut short")

    images = [
        script.Asset("apple_1", object_crop, "CC0-1.0", "apple", ["wooden"]),
        script.Asset("broken", broken, "CC0-1.0", "pear"),
        script.Asset("hill", lambda: Image.new("RGB", (1600, 900), "green"), "MIT"),
    ]
    (tmp_path / "packages").mkdir()
    calls = []
    for _ in range(2):
        script.take(tmp_path, "shop", lambda: calls.append(1) or images)
    assert len(calls) == 1
    apple, hill = script.read_index(script.part_file(tmp_path, "shop"))
    assert (apple["noun"], apple["attributes"], apple["colour"]) == ("apple", ["wooden"], "red")
    assert (apple["recolour"], apple["licence"], apple["source"]) == ("shift", "CC0-1.0", "shop")
    with Image.open(tmp_path / hill["file"]) as image:
        assert image.size == (800, 450)
    script.write_index(tmp_path / "index.jsonl", [apple, hill])
    assets = SceneAssets(tmp_path)
    assert list(assets.object_crops) == ["apple"] and len(assets.backgrounds) == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_a_missing_client_is_named(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"`npm` is needed to fetch the npm package some-icons"):
        script.npm_package(tmp_path, "some-icons")
    with pytest.raises(FileNotFoundError, match=r"`apt-get` is needed"):
        script.debian_package(tmp_path, "some-images")


def test_emoji_get_plain_nouns(script, tmp_path):
    def record(short, subcategory, code="1F400", **more):
        return {"short_name": short, "subcategory": subcategory, "unified": code, **more}

    folder = tmp_path / "emoji-datasource-google"
    folder.mkdir()
    records = [
        record("mouse2", "animal-mammal"),
        record("palm_tree", "plant-other"),
        record("mahjong", "game"),
        record("clock130", "time"),
        record("no_entry", "transport-sign"),
        record("male-cook", "person-role", skin_variations={tone: {"unified": tone} for tone in script.SKIN_TONES}),
    ]
    (folder / "emoji.json").write_text(json.dumps(records))
    found = [noun for noun, _, _ in script.emoji_nouns(tmp_path)]
    assert found == ["mouse", "palm tree", "man", "man"]


def test_names_are_told_once(script):
    for part in ("emoji", "furniture"):
        names = [name for names in script.NAMES[part]["rename"].values() for name in names]
        assert not set(names) & set(script.NAMES[part]["drop"])
        assert part == "emoji" or len(names) == len(set(names))
