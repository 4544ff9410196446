"""benchmarks/training_step.py: what is varied, a real step of a tiny model, the table."""

import pytest
import torch

from tests.scripts import load_script
from tests.tiny import tiny_config
from transformers_glipv2 import GLIPv2ForPreTraining


@pytest.fixture(scope="module")
def script():
    return load_script("benchmarks/training_step.py")


def test_one_thing_at_a_time_differs(script):
    args = script.parse_args(
        ["--scales", "nano", "--batches", "1", "4", "--image_size", "192", "250", "--labels", "10", "80"]
    )
    rows = script.settings(args)
    assert [(row.batch, row.size, row.labels) for row in rows] == [
        (1, (192, 256), 10),
        (4, (192, 256), 10),
        (1, (256, 352), 10),
        (1, (192, 256), 80),
    ]


def test_a_step_learns_with_every_loss(script, monkeypatch):
    models = []

    def build(scale):
        model = GLIPv2ForPreTraining(tiny_config())
        models.append((model, {name: parameter.clone() for name, parameter in model.named_parameters()}))
        return model

    monkeypatch.setattr(script, "build", build)
    args = script.parse_args(["--threads", str(torch.get_num_threads()), "--repeats", "1"])
    setting = script.Setting("nano", 2, (64, 96), 10)
    assert script.measure(setting, args)["seconds"] > 0
    # The weights of all heads moved: nothing is left out of what is measured.
    model, before = models[-1]
    after = dict(model.named_parameters())
    for name in ("detection_head.box_predictor", "mlm_head.dense", "contrastive_head.image_projection"):
        assert not torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
    batch = script.random_batch(setting, 128, torch.device("cpu"))
    losses = model(**batch).loss_dict
    assert {"loss_box", "loss_centerness", "loss_intra", "loss_inter", "loss_mlm"} <= set(losses)
    assert all(loss > 0 for loss in losses.values())


def test_ratios_are_to_the_first_row_of_a_model(script):
    args = script.parse_args(["--scales", "nano"])
    first, second = script.Setting("nano", 1, (192, 256), 10), script.Setting("nano", 4, (192, 256), 10)
    text = script.report({first: {"seconds": 0.5, "memory": 0.2}, second: {"seconds": 1.5, "memory": 0.3}}, args)
    assert "| nano | 1 | 192x256 | 10 | 22 | 0.50 | 1.00x | 0.50 | 0.20 | 1.00x |" in text
    assert "| nano | 4 | 192x256 | 10 | 22 | 1.50 | 3.00x | 0.38 | 0.30 | 1.50x |" in text
