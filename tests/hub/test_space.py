"""The Space: what its tabs do, what they say without a head, and the page in a browser."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.hub.webdriver import Browser, find_browser, wait_for
from tests.scripts import REPOSITORY, load_script
from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import GLIPv2Config, detect_labels
from transformers_glipv2.conversion.remote_code import model_auto_map, save_remote_code
from transformers_glipv2.hub.publishing import prepared_space
from transformers_glipv2.inference.detector import encode_labels
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering, answer_config

pytest.importorskip("gradio", reason="the Space needs gradio (the extra `demo`)")
pytest.importorskip("skimage", reason="the Space shows images of scikit-image (the extra `demo`)")

# The Space as the Hub runs it: its own folder, and the package not installed.
SCRIPT = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_glipv2":
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, ".")
runpy.run_path("app.py", run_name="__main__")
"""
ANSWERS = ["yes", "no", "red", "2", "dog", "cat"]
HEADS = {
    "mask_head": GLIPv2ForInstanceSegmentation,
    "answer_head": GLIPv2ForVisualQuestionAnswering,
    "caption_head": GLIPv2ForConditionalGeneration,
}


@pytest.fixture(scope="module")
def app():
    return load_script("hub_upload/space/app.py")


def save_checkpoint(folder: Path, heads: list[str]) -> Path:
    """A tiny detector with further heads, as one checkpoint."""
    detector = tiny_detector()
    config = GLIPv2Config(**{**detector.config.to_dict(), **answer_config(ANSWERS)})
    weights = detector.state_dict()
    for head in heads:
        model = HEADS[head](config)
        weights |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(f"{head}.")}
    detector.config = config
    text_config, tokenizer = config.text_config, tiny_processor().tokenizer
    text_config.bos_token_id, text_config.eos_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    text_config.pad_token_id = tokenizer.pad_token_id
    detector.save_pretrained(folder, state_dict=weights)
    tiny_processor().save_pretrained(folder)
    save_remote_code(folder)
    return folder


@pytest.fixture(scope="module")
def plain(app, tmp_path_factory):
    return app.Demo(str(save_checkpoint(tmp_path_factory.mktemp("space") / "plain", [])))


@pytest.fixture(scope="module")
def whole(app, tmp_path_factory):
    missing = {auto.__name__ for auto in app.HEADS.values()} - model_auto_map().keys()
    assert not missing, f"the package does not register {missing}"
    return app.Demo(str(save_checkpoint(tmp_path_factory.mktemp("space") / "whole", list(HEADS))))


def test_a_released_checkpoint_by_its_name(app, tmp_path, monkeypatch):
    folder = save_checkpoint(tmp_path / "glip-tiny", [])
    (folder / "source.json").write_text('{"format": 1}')
    monkeypatch.setenv("GLIPV2_CACHE", str(tmp_path))
    demo = app.Demo("glip-tiny")
    assert demo.name == "glip-tiny"
    assert list(demo.models) == ["detection_head"]


def assert_drawn(drawing: PIL.Image.Image) -> None:
    assert drawing.size == natural_image().size
    assert (np.asarray(drawing) != np.asarray(natural_image())).any()


def test_detect_gives_the_boxes_of_the_package(plain):
    drawing, table, _ = plain.detect(natural_image(), " person, traffic light,, person ", 0.4)
    labels = ["person", "traffic light"]
    (expected,) = detect_labels(plain.models["detection_head"], plain.processor, natural_image(), labels, 0.4)
    assert 0 < len(table) <= 30
    assert [row[0] for row in table] == expected["text_labels"][: len(table)]
    assert [row[1] for row in table] == pytest.approx(expected["scores"][: len(table)].tolist(), abs=1e-3)
    assert_drawn(drawing)


def test_ground_gives_boxes_of_phrases(plain):
    drawing, table, _ = plain.ground(natural_image(), "the man left of a dog", 0.0)
    assert {row[0] for row in table} == {"the man", "a dog"}
    assert [row[1] for row in table] == sorted((row[1] for row in table), reverse=True)
    assert len(table) == 6
    assert_drawn(drawing)


def test_masks_answers_and_captions(whole):
    drawing, table, _ = whole.segment(natural_image(), "person, dog", 0.3)
    assert {row[0] for row in table} <= {"person", "dog"}
    assert len(table) > 0
    assert_drawn(drawing)
    answers, drawing, table, _ = whole.ask(natural_image(), "is the dog red?", 0.0)
    assert len(answers) == 5
    assert set(answers) < set(ANSWERS)
    assert list(answers.values()) == sorted(answers.values(), reverse=True)
    assert "the dog" in {row[0] for row in table}
    caption, drawing, table, sentence = whole.caption(natural_image(), "a red cat", 0.0)
    assert caption.startswith("a red cat")
    assert any(row[0].startswith("a red cat") for row in table)
    assert sentence.endswith(("box.", "boxes.", "highest scores."))
    assert_drawn(drawing)


def test_heads_share_the_detector(whole):
    parts = [model.model for model in whole.models.values()]
    assert len(parts) == 4
    assert all(part is parts[0] for part in parts)
    assert not any(model.training for model in whole.models.values())


def test_tabs_without_a_head_say_so(app, plain, whole):
    sentences = [f"This checkpoint has no {head} head" for head in ("mask", "answer", "caption")]
    for demo, told in ((plain, True), (whole, False)):
        page = json.dumps(app.build(app.Models(demo)).get_config_file(), default=str)
        assert [sentence in page for sentence in sentences] == [told] * 3
    names = {function["api_name"] for function in app.build(app.Models(whole)).get_config_file()["dependencies"]}
    assert {"detect", "ground", "segment", "ask", "caption"} <= names


def test_bad_input_is_told_on_the_page(app, plain, whole):
    detect = app.checked(app.Models(plain), "detect")
    for arguments, message in [
        ((None, "person", 0.3), "image"),
        ((natural_image(), " , ", 0.3), "Write what"),
        ((natural_image(), None, 0.3), "Write what"),
        ((natural_image(), "z" * 100, 0.3), "100 tokens long"),
        (
            (natural_image(), ", ".join(f"cat {index}" for index in range(201)), 0.3),
            "These are 201 labels; look for 200",
        ),
        ((natural_image(), "person", 5), "threshold"),
        ((natural_image(), "person", float("nan")), "threshold"),
    ]:
        with pytest.raises(app.gr.Error, match=message):
            detect(*arguments, plain.name)
    with pytest.raises(app.gr.Error, match="no caption head"):
        app.checked(app.Models(plain), "caption")(natural_image(), "", 0.3, plain.name)
    # A caption needs no beginning, and a transparent image is one too.
    caption, *_ = app.checked(app.Models(whole), "caption")(natural_image().convert("RGBA"), "", 0.3, whole.name)
    assert caption


def test_models_are_offered_by_name_and_no_others(app, plain, whole):
    models = app.Models(plain, [whole.name, "glip-tiny", plain.name])
    assert models.names == [plain.name, whole.name, "glip-tiny"]
    page = app.build(models)
    (choice,) = (block for block in page.blocks.values() if isinstance(block, app.gr.Dropdown))
    assert [value for _, value in choice.choices] == models.names
    with pytest.raises(app.gr.Error):
        choice.preprocess("somebody/else")
    with pytest.raises(app.gr.Error, match="'somebody/else' is not offered here"):
        app.checked(models, "detect")(natural_image(), "person", 0.3, "somebody/else")
    # The other model has the heads that the first one lacks, so its tabs appear.
    (choose,) = (function.fn for function in page.fns.values() if function.api_name == "choose")
    _, *updates = choose(whole.name)
    *updates, _, _ = updates
    assert updates[::2] == [""] * 3
    assert [group.visible for group in updates[1::2]] == [True] * 3
    assert app.checked(models, "segment")(natural_image(), "dog", 0.0, whole.name)[1]
    assert list(models.loaded) == [plain.name, whole.name]


def test_a_fine_tuned_model_begins_with_its_own_classes(app, plain, tmp_path):
    save_checkpoint(tmp_path / "tuned", [])
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    names = ["cat", "cup, broken", "traffic light"]
    (tmp_path / "tuned" / "config.json").write_text(json.dumps({**config, "labels": names}))
    tuned = app.Demo(str(tmp_path / "tuned"))

    def boxes_of(models):
        page = app.build(models)
        (choose,) = (function.fn for function in page.fns.values() if function.api_name == "choose")
        return [one for one in page.blocks.values() if getattr(one, "label", "") == "Labels, comma-separated"], choose

    boxes, _ = boxes_of(app.Models(tuned))
    assert [app.split(box.value) for box in boxes] == [names] * 2
    models = app.Models(plain, [tuned.name])
    boxes, choose = boxes_of(models)
    assert [box.value for box in boxes] == ["cat, cup, spoon, person"] * 2
    assert [app.split(text) for text in choose(tuned.name)[-2:]] == [names] * 2
    assert not any(isinstance(text, str) for text in choose(plain.name)[-2:])


def test_only_some_models_stay_in_memory(app, plain, monkeypatch):
    monkeypatch.setattr(app, "Demo", lambda name: name)
    models = app.Models(plain, ["a", "b", "c"])
    for name in ("a", plain.name, "b"):
        models.get(name)
    assert list(models.loaded) == [plain.name, "b"]


def test_the_limits_of_a_model_are_said(app):
    assert "46.4 AP on COCO val2017 (without training on COCO), 232 million" in app.about("glip-tiny")
    assert "small model for trying things out" in app.about("transformers-glipv2/glipv2-nano")
    assert all("can be wrong" in app.about(name) for name in ("glip-tiny", "glipv2-nano", "own/model"))


def test_a_text_that_names_nothing(plain):
    drawing, table, sentence = plain.ground(natural_image(), "is she running to them", 0.0)
    assert (table, sentence) == ([], "The text names nothing to look for.")
    assert drawing.size == natural_image().size


def test_a_list_that_needs_several_prompts_is_split(plain):
    labels = [f"{color} {noun}" for color in ("red", "blue", "green") for noun in ("person", "dog", "cat", "cup")]
    tokenizer = plain.processor.tokenizer
    assert len(encode_labels(labels, tokenizer, plain.processor.max_tokens)) > 1
    _, table, sentence = plain.detect(natural_image(), ", ".join(labels), 0.0)
    assert len(table) >= 30
    assert "30 boxes with the highest scores" in sentence


def test_nothing_found_is_said(plain):
    drawing, table, sentence = plain.detect(natural_image(), "person", 1.0)
    assert table == []
    assert sentence == "Nothing has a score of 1 or more. Lower the score, or use other words."
    assert (np.asarray(drawing) == np.asarray(natural_image())).all()


@pytest.mark.parametrize("content", [b"no image", b"\x89PNG\r\n\x1a\n cut", b""])
def test_files_that_are_no_images_get_a_sentence(app, plain, tmp_path, content):
    (tmp_path / "file.png").write_bytes(content)
    page = app.build(app.Models(plain))
    (image,) = (block for block in page.blocks.values() if getattr(block, "elem_id", None) == "image")
    payload = image.data_model(path=str(tmp_path / "file.png"), orig_name="file.png")
    with pytest.raises(app.gr.Error, match="This file is no image that can be read"):
        image.preprocess(payload)


@pytest.mark.parametrize("value", ["high", 5, -1, [0.3]])
def test_numbers_that_are_none_get_a_sentence(app, plain, value):
    sliders = [block for block in app.build(app.Models(plain)).blocks.values() if isinstance(block, app.gr.Slider)]
    assert sliders
    for slider in sliders:
        with pytest.raises(app.gr.Error, match="a number from 0 to 1"):
            slider.preprocess(value)
        assert slider.preprocess(0.5) == 0.5


def test_the_model_is_named_in_the_readme(app, monkeypatch):
    monkeypatch.delenv("GLIPV2_MODEL", raising=False)
    assert app.model_name().endswith("/glipv2-nano")
    monkeypatch.setenv("GLIPV2_MODEL", "somewhere")
    assert app.model_name() == "somewhere"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.skipif(
    find_browser() is None, reason="no chromium and chromedriver here (apt-get install chromium-driver)"
)
def test_page_in_a_browser(app, plain, tmp_path):
    """An image is uploaded and boxes appear; GLIPV2_SCREENSHOT keeps what is seen."""
    natural_image(360, 520).save(tmp_path / "image.png")
    port = free_port()
    environment = os.environ | {
        "GLIPV2_MODEL": plain.name,
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    with prepared_space(REPOSITORY / "hub_upload" / "space", None) as folder:
        shutil.copytree(folder, tmp_path / "space")
    log = (tmp_path / "log.txt").open("w")
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", SCRIPT],
        cwd=tmp_path / "space",
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: urllib.request.urlopen(address, timeout=5).status == 200, 240, "the page does not start")
        with Browser(free_port()) as browser:
            browser.open(address)
            browser.write("#image input[type=file]", str(tmp_path / "image.png"))
            browser.find("#image img")
            # Frameworks set the value of a field behind its back; an event tells them that it changed.
            browser.run(
                "const field = document.querySelector('#labels textarea'); field.value = arguments[0];"
                "field.dispatchEvent(new Event('input', {bubbles: true}))",
                ", ".join(LABELS),
            )
            browser.click("#detect")
            browser.find("#detected img", 120)
            source = browser.run("return document.querySelector('#detected img').src")
            with urllib.request.urlopen(source, timeout=60) as response:
                drawing = PIL.Image.open(io.BytesIO(response.read())).convert("RGB")
            text = browser.run("return document.body.innerText")
            browser.screenshot(Path(os.environ.get("GLIPV2_SCREENSHOT", tmp_path / "page.png")))
    finally:
        server.terminate()
        server.wait(30)
        log.close()
    expected, table, _ = plain.detect(natural_image(360, 520), ", ".join(LABELS), app.THRESHOLD)
    assert drawing.size == expected.size
    # Lines may fall a pixel apart where the other process rounds a coordinate the other way.
    assert (np.asarray(drawing) != np.asarray(expected)).mean() < 0.02
    assert table[0][0] in text
    assert str(table[0][1]) in text
