"""examples/finetune_detection.py on drawn images: every way of tuning, few shots, rehearsal, resuming."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from safetensors.torch import load_file

from tests.scripts import load_script
from tests.tiny import tiny_inputs
from tests.tiny_training import drawn_coco, read_log, tiny_checkpoint
from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.training import fine_tune as fine_tune_module

finetune = load_script("examples/finetune_detection.py")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    tiny_checkpoint(folder / "model")
    drawn_coco(folder / "coco", train=8, val=2, test=2)
    (folder / "data.yaml").write_text(
        "sources: [{kind: coco, path: coco, split: test}]\nevaluation: {path: coco, split: test}\n"
    )
    return folder


def arguments(folder: Path, output: str, *more: str) -> list[str]:
    given = ["--model", folder / "model", "--data", folder / "coco", "--output", folder / output]
    given += ["--num_steps", "2", "--batch_size", "4", "--eval_steps", "1", *more]
    return [str(value) for value in given]


def without_output(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name != "output"}


@pytest.mark.parametrize("way", ["full", "frozen-backbone", "head"])
def test_ways_that_leave_a_whole_model(folder, way):
    # Two steps of scrambled objects would leave the boxes as they are.
    metrics = finetune.main(arguments(folder, way, "--train", way, "--scramble", "0"))
    assert json.loads((folder / way / "metrics.json").read_text()) == without_output(metrics)
    assert metrics["best_step"] == 1
    assert "AP50" in metrics["val"]
    before, after = (load_file(folder / name / "model.safetensors") for name in ("model", way))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    parts = {".".join(name.split(".")[:2]) for name in changed}
    assert {"detection_head.box_predictor", "detection_head.token_projection"} <= parts
    assert ("model.text_encoder" in parts) == (way != "head")
    assert any("backbone.encoder.layers.0" in name for name in changed) == (way == "full")
    assert any("backbone.encoder.layers.3" in name for name in changed) == (way != "head")
    if way == "head":
        assert all(name.startswith("detection_head.") for name in changed)


def test_prompt_leaves_a_small_file(folder):
    metrics = finetune.main(arguments(folder, "prompt", "--train", "prompt", "--test_split", "test"))
    # "cat. dog" with special tokens, words of 32 numbers.
    assert metrics["trainable_parameters"] == 5 * 32
    assert "AP" in metrics["test"]
    assert (folder / "prompt" / "prompt_tuning.safetensors").stat().st_size < 2000
    before, after = (load_file(folder / name / "model.safetensors") for name in ("model", "prompt"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    model = GLIPv2ForObjectDetection.from_pretrained(folder / "prompt")
    assert model.model.text_encoder.offsets.abs().sum() > 0
    GLIPv2Processor.from_pretrained(folder / "prompt")


def test_adapters_and_a_resumed_run(folder):
    more = ("--train", "lora", "--resume", "latest")
    first = finetune.main(arguments(folder, "lora", *more))
    learned = load_file(folder / "lora" / "adapter" / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and tensor.abs().sum() > 0 for name, tensor in learned.items())
    # The weights with the adapters merged are those of the model with its adapters.
    merged = GLIPv2ForObjectDetection.from_pretrained(folder / "lora").eval()
    start = GLIPv2ForObjectDetection.from_pretrained(folder / "model").eval()
    adapted = PeftModel.from_pretrained(start, folder / "lora" / "adapter").eval()
    inputs = tiny_inputs(batch=1)
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, adapted(**inputs).logits)
    # The run is over, so nothing is trained; the same scores come again.
    assert finetune.main(arguments(folder, "lora", *more)) == first
    assert [line["step"] for line in read_log(folder / "lora")] == [1, 1, 2, 2]


def test_learns_to_find_what_is_drawn(folder):
    more = ("--num_steps", "40", "--eval_steps", "40", "--learning_rate", "3e-3", "--eval_split", "train")
    metrics = finetune.main(arguments(folder, "learned", *more))
    assert metrics["train"]["AP50"] > 30
    losses = [line["loss"] for line in read_log(folder / "learned") if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]


def test_few_shots_with_empty_images_and_rehearsal(folder):
    more = ("--shots", "1", "--seed", "30", "--empty_images", "1", "--image_size", "48", "64")
    metrics = finetune.main(arguments(folder, "few", *more, "--keep_vocabulary", str(folder / "data.yaml")))
    assert (metrics["shots"], metrics["seed"]) == (1, 30)
    assert set(metrics["kept_vocabulary_before"]) == set(metrics["kept_vocabulary_after"])
    settings = json.loads((folder / "few" / "training_args.json").read_text())
    assert settings["image_size"] == [48, 64]


def test_forgetting_is_measured_without_rehearsal(folder, monkeypatch):
    read = []
    monkeypatch.setattr(fine_tune_module, "load_sources", lambda data: read.append(data))
    more = ("--keep_vocabulary", str(folder / "data.yaml"), "--rehearsal_fraction", "0", "--num_steps", "1")
    metrics = finetune.main(arguments(folder, "forgets", *more))
    assert {"kept_vocabulary_before", "kept_vocabulary_after"} <= set(metrics)
    assert read == []
    with pytest.raises(SystemExit):
        finetune.parse_args(arguments(folder, "forgets", "--rehearsal_fraction", "1"))


def test_an_unknown_split_is_told_before_training(folder):
    with pytest.raises(ValueError, match="its splits are train, val, test"):
        finetune.main(arguments(folder, "wrong", "--eval_split", "minival"))
    assert not (folder / "wrong" / "checkpoints").exists()


def test_few_images_are_trained_on_and_scored_at_the_size_that_is_saved(folder, monkeypatch):
    seen = {}

    class Mixture(fine_tune_module.MixtureDataset):
        def __getitem__(self, draw):
            row = super().__getitem__(draw)
            seen.setdefault("trained", set()).add(row["image_id"])
            return row

    class Evaluator(fine_tune_module.DetectionEvaluator):
        def __call__(self, model):
            seen["scored"] = {record["image_id"] for record in self.dataset.records}
            seen["size"] = self.processor.image_processor.size["shortest_edge"]
            return super().__call__(model)

    monkeypatch.setattr(fine_tune_module, "MixtureDataset", Mixture)
    monkeypatch.setattr(fine_tune_module, "DetectionEvaluator", Evaluator)
    more = ("--max_samples", "3", "--eval_split", "train", "--eval_steps", "2", "--image_size", "48", "72")
    more += ("--test_split", "none")
    assert "AP50" in finetune.main(arguments(folder, "overfit", *more))["train"]
    assert seen == {"trained": {0, 1, 2}, "scored": {0, 1, 2}, "size": 72}
    size = GLIPv2Processor.from_pretrained(folder / "overfit").image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (72, 108)


def test_the_last_weights_where_no_split_chooses(folder):
    metrics = finetune.main(arguments(folder, "last", "--eval_split", "none", "--test_split", "test"))
    assert "best_step" not in metrics and metrics["steps"] == 2
    assert "AP50" in metrics["test"]
    assert not any("eval_AP" in line for line in read_log(folder / "last"))
    last = load_file(folder / "last" / "checkpoints" / "step-0000002" / "model.safetensors")
    kept = load_file(folder / "last" / "model.safetensors")
    name = "detection_head.box_predictor.weight"
    assert torch.equal(kept[name], last[name])
