"""examples/finetune_with_trainer.py: transformers' recipe for detection, as it is written, on drawn images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import EvalPrediction

from tests.scripts import load_script
from tests.tiny_training import drawn_coco, tiny_checkpoint, tiny_processor
from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2Processor
from transformers_glipv2.data.formats.coco import load_coco

finetune = load_script("examples/finetune_with_trainer.py")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    tiny_checkpoint(folder / "model")
    drawn_coco(folder / "coco", train=6, val=4)
    return folder


def test_the_recipe_of_transformers(folder):
    """Image 3 of each split has no object; the evaluation's last batch is smaller."""
    arguments = ["--model", folder / "model", "--data", folder / "coco", "--output", folder / "out"]
    arguments += ["--epochs", "2", "--batch_size", "3", "--learning_rate", "1e-3"]
    metrics = finetune.main([str(value) for value in arguments])
    assert {"eval_AP", "eval_AP50", "eval_AP75", "eval_loss"} <= metrics.keys()
    assert 0 <= metrics["eval_AP50"] <= 1 and np.isfinite(metrics["eval_loss"])
    assert json.loads((folder / "out/eval_results.json").read_text())["eval_AP"] == metrics["eval_AP"]
    before, after = (load_file(folder / name / "model.safetensors") for name in ("model", "out"))
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
    state = json.loads(next((folder / "out").glob("checkpoint-4/trainer_state.json")).read_text())
    assert state["best_metric"] == metrics["eval_AP"], "the best weights were loaded"
    model, processor = (one.from_pretrained(folder / "out") for one in (GLIPv2ForObjectDetection, GLIPv2Processor))
    with torch.no_grad():
        assert model(**processor(images=load_coco(folder / "coco", split="val")[0]["image"], text=[["cat", "dog"]]))


def test_perfect_predictions_score_1(folder):
    """Of two batches of different sizes, with a box of each class and an image without any."""
    processor, labels = tiny_processor(), ["cat", "dog"]
    model = GLIPv2ForObjectDetection.from_pretrained(folder / "model").eval()
    rows = [load_coco(folder / "coco", split="val")[index] for index in range(4)]
    rows[3]["image"] = rows[3]["image"].resize((60, 64))
    collator = finetune.Collator(processor, labels)
    ignored = ("loss", *model.config.keys_to_ignore_at_inference)
    predictions, targets = [], []
    for batch in (collator(rows[:3]), collator(rows[3:])):
        with torch.no_grad():
            outputs = model(**batch)
        outputs.logits[:], outputs.centerness[:] = -20, 10
        for index, label in enumerate(batch["labels"]):
            for box, positive_map in zip(label["boxes"], label["positive_map"], strict=True):
                outputs.logits[index, 0, positive_map > 0] = 10
                outputs.pred_boxes[index, 0] = box
        predictions.append(tuple(arrays(value) for name, value in outputs.items() if name not in ignored))
        targets.append([{name: value.numpy() for name, value in label.items()} for label in batch["labels"]])
    scores = finetune.AveragePrecision(processor, labels, ignored)(EvalPrediction(predictions, targets))
    assert scores == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}


def arrays(value):
    return value.numpy() if isinstance(value, torch.Tensor) else {name: one.numpy() for name, one in value.items()}
