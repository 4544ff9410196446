"""What fine-tuning leaves: every head, class names as default labels, a card that can be published, a new folder."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from tests.tiny_detector import save_tiny_heads
from tests.tiny_training import drawn_coco, read_log
from transformers_glipv2 import (
    Detector,
    GLIPv2ForConditionalGeneration,
    GLIPv2ForInstanceSegmentation,
    GLIPv2ForObjectDetection,
    GLIPv2ForVisualQuestionAnswering,
    GLIPv2Processor,
)
from transformers_glipv2.cli.main import run_command
from transformers_glipv2.training.fine_tune import FineTuneOptions, fine_tune

WAYS = ("full", "head", "prompt", "lora")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fine_tune")
    save_tiny_heads(folder)
    (folder / "model" / "generation_config.json").write_text('{"max_new_tokens": 7}')
    drawn_coco(folder / "pets", train=4, val=2, test=2)
    for split in ("train", "val"):
        (folder / "birds" / split).mkdir(parents=True)
        for file in (folder / "pets" / split).iterdir():
            (folder / "birds" / split / file.name).write_bytes(file.read_bytes())
        content = json.loads((folder / "pets" / f"{split}.json").read_text())
        content["annotations"] = [{**one, "category_id": 1} for one in content["annotations"]]
        content["categories"] = [{"id": 1, "name": "bird"}]
        (folder / "birds" / f"{split}.json").write_text(json.dumps(content))
    return folder


def options(folder: Path, output: str | None, **changes) -> FineTuneOptions:
    own = FineTuneOptions(
        str(folder / "model"), folder / "pets", folder / output if output else None, num_steps=2, eval_steps=1
    )
    return dataclasses.replace(own, **changes)


@pytest.fixture(scope="module")
def tuned(folder) -> dict[str, Path]:
    """A folder of each way of tuning; "masks" is one that began with a mask head."""
    AcceleratorState._reset_state(True)
    for way in WAYS:
        fine_tune(options(folder, way, train=way))
        AcceleratorState._reset_state(True)
    fine_tune(options(folder, "masked", model=str(folder / "masks")))
    return {name: folder / name for name in (*WAYS, "masked")}


LANGUAGE = ((GLIPv2ForVisualQuestionAnswering, "answer_head."), (GLIPv2ForConditionalGeneration, "caption_head."))
HEADS = {
    "masked": ((GLIPv2ForInstanceSegmentation, "mask_head."),),
    **dict.fromkeys(WAYS, LANGUAGE),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_the_start_stay(folder, tuned, name):
    start = load_file(folder / ("masks" if name == "masked" else "model") / "model.safetensors")
    for model_class, prefix in HEADS[name]:
        model, info = model_class.from_pretrained(tuned[name], output_loading_info=True)
        assert not info["missing_keys"]
        # The output layer of captions is the text encoder's embedding.
        kept = [key for key in model.state_dict() if key.startswith(prefix) and "decoder" not in key]
        assert kept and all(torch.equal(model.state_dict()[key], start[key]) for key in kept)
    if name != "masked":
        assert model.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_ask_looks_for_the_classes_of_training(tuned, name, tmp_path, capsys, monkeypatch):
    image = Image.new("RGB", (96, 64), "red")
    image.save(tmp_path / "image.png")
    model = GLIPv2ForObjectDetection.from_pretrained(tuned[name]).eval()
    assert list(model.config.labels) == ["cat", "dog"]
    assert (model.config.tuned_prompt == "cat. dog") == (name == "prompt")
    (found,) = Detector(model, GLIPv2Processor.from_pretrained(tuned[name]), threshold=0.0).detect(image)
    assert set(found["text_labels"]) == {"cat", "dog"}
    detector = pipeline("zero-shot-object-detection", model=str(tuned[name]), device="cpu")
    boxes = detector(image, threshold=0.0)
    assert boxes[0]["score"] == pytest.approx(float(found["scores"][0]), abs=1e-5)
    for several in ([image, image], [str(tmp_path / "image.png")]):
        assert detector(several, threshold=0.0)[0] == boxes
    monkeypatch.chdir(tmp_path)
    assert run_command(["detect", "image.png", "--model", str(tuned[name]), "--threshold", "0", "--json"]) == 0
    (printed,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed["objects"][0]["score"] == pytest.approx(boxes[0]["score"], abs=1e-3)


@pytest.mark.parametrize("name", WAYS)
def test_many_images_and_scores_need_no_labels_either(folder, tuned, name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 64), "red").save("image.png")
    given = ["--model", str(tuned[name]), "--device", "cpu", "--output"]
    assert run_command(["predict", "image.png", *given, "found", "--format", "coco", "--threshold", "0"]) == 0
    (file,) = [path for path in Path("found").glob("*.json") if path.name != "failures.json"]
    assert {one["name"] for one in json.loads(file.read_text())["categories"]} == {"cat", "dog"}
    AcceleratorState._reset_state(True)
    assert run_command(["evaluate", "--data", str(folder / "pets"), "--split", "val", *given, "scores"]) == 0
    assert Path("scores/metrics.json").is_file()


def test_heads_that_are_not_there_are_refused_by_the_commands(tuned, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 64), "red").save("image.png")
    for command, model in (
        (["segment", "image.png"], "full"),
        (["ask", "image.png", "--question", "red?"], "masked"),
        (["caption", "image.png"], "masked"),
    ):
        assert run_command([*command, "--model", str(tuned[model])]) == 2
        assert "has no weights for" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*WAYS, "masked"])
def test_the_folder_can_be_published_as_it_is(tuned, name, capsys):
    before = (tuned[name] / "README.md").read_text()
    assert run_command(["push", str(tuned[name]), f"someone/{name}", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "Dry run" in said and "plots/predictions.png" in said
    assert "checkpoints" not in said and "training_args.json" not in said
    assert (tuned[name] / "README.md").read_text() == before


def test_the_card_names_data_command_scores_and_heads(tuned):
    card = ModelCard.load(tuned["full"] / "README.md")
    assert card.data.pipeline_tag == "zero-shot-object-detection"
    results = {(one.dataset_split, one.metric_name): one.metric_value for one in card.data.eval_results}
    metrics = json.loads((tuned["full"] / "metrics.json").read_text())
    assert results["val", "AP50"] == round(metrics["val"]["AP50"], 2)
    assert ("test", "AP") in results
    assert "glipv2 train --model model --data pets --num_steps 2 --eval_steps 1" in card.text
    assert "answers to questions" in card.text and "are kept, but were not trained" in card.text
    assert "as they were" in (tuned["prompt"] / "README.md").read_text()
    for plot in ("loss", "average_precision", "confusion_matrix", "predictions"):
        with Image.open(tuned["full"] / "plots" / f"{plot}.png") as image:
            assert image.width > 300


def test_a_used_folder_is_refused_and_a_folder_without_a_name_is_numbered(folder, tuned, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match=r"full holds a model or a run.*full-2"):
        fine_tune(options(folder, "full"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "pets").mkdir(parents=True)
    (tmp_path / "outputs" / "pets" / "config.json").write_text("{}")
    done = fine_tune(options(folder, None, eval_split="none", num_steps=1))
    assert done["output"] == "outputs/pets-2"
    AcceleratorState._reset_state(True)
    # The same command goes on with the newest run.
    longer = fine_tune(options(folder, None, eval_split="none", num_steps=2, resume="latest"))
    assert (longer["output"], longer["steps"]) == ("outputs/pets-2", 2)


def test_a_run_ends_without_gains_and_epochs_give_its_length(folder):
    done = fine_tune(options(folder, "epochs", num_steps=None, epochs=6, eval_steps=1, patience=2))
    # Four images, batches of four; the boxes of a tiny model do not get better so soon.
    assert done["recipe"]["num_steps"] == 6
    assert done["steps"] == done["best_step"] + 2 < 6
    assert [line["step"] for line in read_log(folder / "epochs") if "eval_AP" in line][-1] == done["steps"]
    with pytest.raises(ValueError, match="pass one of them"):
        options(folder, "both", epochs=2)


def test_classes_are_added_to_known_ones(folder, tuned):
    start = str(tuned["full"])
    done = fine_tune(options(folder, "added", model=start, data=folder / "birds", add_classes=True))
    assert done["labels"] == ["cat", "dog", "bird"]
    model = GLIPv2ForObjectDetection.from_pretrained(folder / "added")
    assert list(model.config.labels) == ["cat", "dog", "bird"]
    AcceleratorState._reset_state(True)
    done = fine_tune(options(folder, "replaced", model=start, data=folder / "birds"))
    assert done["labels"] == ["bird"]
    AcceleratorState._reset_state(True)
    with pytest.raises(ValueError, match="none to keep"):
        fine_tune(options(folder, "nothing-known", add_classes=True))


def test_the_command_trains_and_says_what_is_wrong(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["train", "--model", str(folder / "model"), "--data", str(folder / "pets"), "--image_size", "48,64"]
    assert run_command([*given, "--num_steps", "1", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["output"], printed["recipe"]["image_size"]) == ("outputs/pets", [48, 64])
    for wrong, message in (
        (["--train", "half"], "'half' is none of full"),
        (["--epochs", "1", "--num_steps", "1"], "pass one of them"),
        (["--eval_split", "minival"], "no split 'minival'"),
        (["--output", "outputs/pets"], "holds a model or a run"),
        (["--image_size", "wide"], "--image_size"),
    ):
        assert run_command([*given, *wrong]) == 2
        assert message in capsys.readouterr().err
