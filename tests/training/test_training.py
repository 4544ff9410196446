"""What the training scripts share: groups, rates, batches, averages, checkpoints, tuning ways, evaluation."""

import copy
import json
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.tiny import tiny_config, tiny_inputs
from tests.tiny_training import drawn_coco, tiny_processor
from transformers_glipv2 import GLIPv2ForObjectDetection, GLIPv2ForPreTraining
from transformers_glipv2.training import (
    DetectionEvaluator,
    StepBatches,
    WeightAverage,
    export_model,
    freeze,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
    prepare_tuning,
    step_loader,
)
from transformers_glipv2.training import evaluation as evaluation_module
from transformers_glipv2.training.batches import read_batches


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def model() -> GLIPv2ForPreTraining:
    torch.manual_seed(0)
    return GLIPv2ForPreTraining(tiny_config())


# Optimizer -----------------------------------------------------------------------------------------------------------


def test_groups_hold_every_parameter_once(model):
    groups = {group["name"]: group for group in parameter_groups(model, 1e-3, weight_decay=0.1)}
    members = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert len(members) == len(set(members)) == len(list(model.parameters()))
    assert [groups[name]["lr"] for name in ("base", "base_no_decay")] == [1e-3, 1e-3]
    assert [groups[name]["lr"] for name in ("text", "text_no_decay")] == pytest.approx([1e-4, 1e-4])
    assert [groups[name]["weight_decay"] for name in groups] == [0.1, 0.0, 0.1, 0.0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of_group = {name: {names[id(parameter)] for parameter in group["params"]} for name, group in groups.items()}
    text = of_group["text"] | of_group["text_no_decay"]
    assert all(".text_encoder." in name or ".text_layer." in name for name in text)
    assert {"model.layers.0.text_layer.intermediate.weight", "model.layers.0.text_layer.output_norm.bias"} <= text
    assert "model.layers.0.fusion.text_key.weight" in of_group["base"]
    undecayed = of_group["base_no_decay"]
    assert {"detection_head.log_scale", "model.neck.p6.bias", "model.layers.0.fusion.vision_norm.weight"} <= undecayed
    assert any("relative_position_bias_table" in name for name in undecayed)
    assert not any(name.endswith("bias") for name in of_group["base"] | of_group["text"])


def test_a_backbone_gets_a_rate_of_its_own(model):
    groups = {group["name"]: group for group in parameter_groups(model, 1e-3, backbone_learning_rate_factor=0.2)}
    own = {id(parameter) for parameter in model.model.backbone.parameters()}
    members = {name: {id(parameter) for parameter in group["params"]} for name, group in groups.items()}
    assert members["backbone"] | members["backbone_no_decay"] == own
    assert not own & set().union(*(ids for name, ids in members.items() if not name.startswith("backbone")))
    assert groups["backbone"]["initial_lr"] == pytest.approx(2e-4) and groups["base"]["initial_lr"] == 1e-3
    with pytest.raises(ValueError, match="backbone_learning_rate_factor"):
        parameter_groups(model, 1e-3, backbone_learning_rate_factor=0.0)


def test_groups_leave_out_frozen_parts(model):
    freeze(model, ["text-encoder"])
    # The word embeddings are the decoder of the masked-word head too.
    frozen = {id(parameter) for parameter in model.model.text_encoder.parameters()}
    assert not any(id(parameter) in frozen for group in parameter_groups(model, 1e-3) for parameter in group["params"])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model has `requires_grad`"):
        parameter_groups(model, 1e-3)


def test_the_optimizer_is_a_fused_adamw(model):
    optimizer = make_optimizer(parameter_groups(model, 1e-3))
    assert optimizer.defaults["fused"]
    plain = torch.optim.AdamW(parameter_groups(copy.deepcopy(model), 1e-3))
    for step in range(3):
        for group, other in zip(optimizer.param_groups, plain.param_groups, strict=True):
            for one, twin in zip(group["params"], other["params"], strict=True):
                one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
                twin.grad = one.grad.clone()
        optimizer.step()
        plain.step()
    for group, other in zip(optimizer.param_groups, plain.param_groups, strict=True):
        for one, twin in zip(group["params"], other["params"], strict=True):
            torch.testing.assert_close(one, twin, atol=1e-6, rtol=1e-5)


def test_the_optimizer_of_a_device_without_a_fused_one_is_plain():
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    assert not make_optimizer([{"params": [parameter]}]).defaults["fused"]


def test_schedules():
    def factors(**options):
        return [learning_rate_factor(step, 100, **options) for step in (0, 4, 9, 10, 55, 67, 89, 100)]

    assert factors(schedule="constant", warmup_steps=10) == pytest.approx([0.1, 0.5, 1, 1, 1, 1, 1, 1])
    assert factors(schedule="steps") == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.01, 0.01])
    cosine = factors(schedule="cosine", warmup_steps=10)
    assert cosine[:5] == pytest.approx([0.1, 0.5, 1, 1, 0.5])
    assert cosine[-1] == pytest.approx(0)
    with pytest.raises(ValueError, match="`schedule` is 'linear'; choose one of cosine, steps, constant"):
        learning_rate_factor(0, 10, schedule="linear")
    with pytest.raises(ValueError, match="got -1, 0, 10"):
        learning_rate_factor(-1, 10)


# Batches -------------------------------------------------------------------------------------------------------------


def test_processes_share_the_rows_of_a_step():
    assert list(StepBatches(8, 3)) == [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    shares = [list(StepBatches(8, 3, 1, 2, index, 2)) for index in range(2)]
    assert shares[0] == [[8, 9], [12, 13], [16, 17], [20, 21]]
    assert shares[1] == [[10, 11], [14, 15], [18, 19], [22, 23]]
    assert len(StepBatches(8, 3, 1, 2, 0, 2)) == 4
    assert list(StepBatches(8, 3, 3)) == []
    with pytest.raises(ValueError, match="multiple of 2 processes x 3"):
        StepBatches(8, 1, 0, 3, 0, 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labels_come_from_the_loader_as_they_were_collated(num_workers):
    def collate(rows):
        labels = [{"boxes": torch.full((n, 4), 0.5), "class_ids": torch.full((n,), 7)} for n in rows]
        labels[0]["masks"] = torch.eye(3, dtype=torch.bool)[None]
        return {"pixel_values": torch.tensor(rows), "labels": [*labels, None]}

    found = list(step_loader([0, 1, 2, 3], StepBatches(2, 2), collate, num_workers))
    for batch, expected in zip(found, (collate([0, 1]), collate([2, 3])), strict=True):
        assert batch["pixel_values"].equal(expected["pixel_values"]) and batch["labels"][2] is None
        for one, other in zip(batch["labels"][:2], expected["labels"][:2], strict=True):
            assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    assert found[0]["labels"][0]["masks"].equal(torch.eye(3, dtype=torch.bool)[None])


def test_the_workers_of_a_run_that_fails_end():
    loader = step_loader(list(range(100)), StepBatches(2, 50), list, num_workers=2)
    with pytest.raises(FloatingPointError) as failure, read_batches(loader) as batches:
        assert next(batches) == [0, 1]
        assert len(multiprocessing.active_children()) >= 2
        raise FloatingPointError
    assert failure.traceback and not multiprocessing.active_children()


def test_loader_leaves_the_global_stream_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    rows = [row for batch in step_loader(list("abcdef"), StepBatches(3, 2), "".join) for row in batch]
    assert "".join(rows) == "abcdef"
    assert torch.rand(1) == expected


# Averages ------------------------------------------------------------------------------------------------------------


def test_average_follows_the_formula_and_comes_back():
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    average = WeightAverage(layer, 0.5)
    expected, weights = layer.weight.detach().clone(), []
    for step in range(30):
        with torch.no_grad():
            layer.weight.add_(step)
        weights.append(layer.weight.detach().clone())
        average.update(layer)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights[-1]
    with average.applied(layer):
        torch.testing.assert_close(layer.weight.detach(), expected)
    assert torch.equal(layer.weight, weights[-1])
    assert set(average.state_dict()) == {"weight", "updates"}
    other = WeightAverage(layer, 0.5)
    other.load_state_dict(average.state_dict())
    assert other.updates == 30
    assert torch.equal(other.average["weight"], average.average["weight"])
    with pytest.raises(ValueError, match="belong to other trainable parameters; 1 names differ, such as bias"):
        other.load_state_dict({**average.state_dict(), "bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\), got 1"):
        WeightAverage(layer, 1)


@pytest.fixture
def sharded_model(model):
    """A model whose parameters are shards (of one process)."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    mesh = init_device_mesh("cpu", (1,))
    for layer in [*model.model.text_encoder.encoder.layer, *model.model.layers]:
        fully_shard(layer, mesh=mesh)
    yield fully_shard(model, mesh=mesh)
    dist.destroy_process_group()


def test_average_of_shards(sharded_model):
    average = WeightAverage(sharded_model, 0.5)
    name = "detection_head.token_projection.weight"
    weight = dict(sharded_model.named_parameters())[name]
    before = weight.full_tensor().clone()
    with torch.no_grad():
        weight.add_(1.0)
    average.update(sharded_model)
    expected = before + 0.9
    torch.testing.assert_close(average.state_dict()[name], expected)
    other = WeightAverage(sharded_model, 0.5)
    other.load_state_dict(average.state_dict())
    with other.applied(sharded_model):
        torch.testing.assert_close(weight.full_tensor(), expected)
    torch.testing.assert_close(weight.full_tensor(), before + 1)


def test_evaluates_a_sharded_model(sharded_model, tmp_path):
    folder = drawn_coco(tmp_path / "coco", val=2)
    evaluator = DetectionEvaluator(Accelerator(cpu=True), tiny_processor(), folder, "val", progress=False)
    assert evaluator(sharded_model.eval())["AP"] == pytest.approx(0, abs=1)


# Ways of tuning ------------------------------------------------------------------------------------------------------


def trainable_parts(model: nn.Module) -> set[str]:
    """The first two parts of the names of trainable parameters."""
    return {".".join(name.split(".")[:2]) for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def detect(model: nn.Module, processor) -> torch.Tensor:
    text = processor.tokenizer(["cat. dog"] * 2, return_tensors="pt", return_token_type_ids=False)
    return model.eval()(**{**tiny_inputs(), **text}).logits


@pytest.mark.parametrize("way", ["head", "prompt", "lora"])
def test_a_tuned_model_comes_back_from_its_folder(way, tmp_path):
    torch.manual_seed(0)
    processor = tiny_processor()
    GLIPv2ForObjectDetection(tiny_config()).save_pretrained(tmp_path / "model")
    original = GLIPv2ForObjectDetection.from_pretrained(tmp_path / "model")
    before = detect(original, processor)
    model = prepare_tuning(
        GLIPv2ForObjectDetection.from_pretrained(tmp_path / "model"), way, processor, text="cat. dog"
    )
    assert torch.equal(detect(model, processor), before)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned = detect(model, processor)
    assert not torch.allclose(tuned, before)
    accelerator = Accelerator()
    export_model(accelerator, processor, accelerator.prepare_model(model), tmp_path / "tuned")
    loaded = GLIPv2ForObjectDetection.from_pretrained(tmp_path / "tuned")
    torch.testing.assert_close(detect(loaded, processor), tuned)


def test_ways_train_what_they_say():
    torch.manual_seed(0)
    processor = tiny_processor()

    def parts(way: str) -> set[str]:
        return trainable_parts(prepare_tuning(GLIPv2ForObjectDetection(tiny_config()), way, processor, text="cat"))

    everything = {"model.backbone", "model.neck", "model.text_encoder", "model.layers"}
    head = {name for name in parts("full") if name.startswith("detection_head.")}
    assert parts("full") == parts("frozen-backbone") == everything | head
    assert parts("frozen-text") == parts("frozen-encoders") == (everything | head) - {"model.text_encoder"}
    assert parts("head") == head
    assert parts("prompt") == {"model.text_encoder"}
    model = prepare_tuning(GLIPv2ForObjectDetection(tiny_config()), "lora", processor)
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "detection_head" in name for name in learned)
    for part in ("backbone", "text_encoder", "fusion.text_key", "text_layer.attention", "neck.output_convs"):
        assert any(part in name for name in learned), part
    with pytest.raises(ValueError, match="`way` is 'some'; choose one of full"):
        prepare_tuning(model, "some", processor)


@pytest.mark.parametrize(
    ("backbone", "frozen", "learning"),
    [
        (
            None,
            ("swin.embeddings.", "swin.encoder.layers.1."),
            ("swin.encoder.layers.2.", "hidden_states_norms."),
        ),
        (
            {"model_type": "timm_backbone", "backbone": "tf_efficientnet_lite0", "out_indices": [2, 3, 4]},
            ("_backbone.conv_stem.", "_backbone.bn1.", "_backbone.blocks.2."),
            ("_backbone.blocks.3.", "_backbone.blocks.6."),
        ),
    ],
)
def test_lower_backbone(backbone, frozen, learning):
    model = GLIPv2ForObjectDetection(tiny_config(**({} if backbone is None else {"backbone_config": backbone})))
    freeze(model, ["lower-backbone"])
    flags = {name: parameter.requires_grad for name, parameter in model.model.backbone.named_parameters()}
    for part in frozen + learning:
        found = {flag for name, flag in flags.items() if name.startswith(part)}
        assert found == {part in learning}, part


def test_lower_backbone_of_an_unknown_kind():
    model = nn.Module()
    model.backbone, model.text_encoder = nn.Linear(1, 1), nn.Linear(1, 1)
    with pytest.raises(ValueError, match="no stem or stage is known in Linear"):
        freeze(model, ["lower-backbone"])
    with pytest.raises(ValueError, match="`parts` has 'head'; choose of text-encoder"):
        freeze(model, ["head"])


# Evaluation ----------------------------------------------------------------------------------------------------------


class Oracle:
    """A detector that sees the annotations."""

    def __init__(self, truth: list[list[tuple[int, list[float]]]]):
        self.truth, self.images = truth, 0

    def __call__(self, model, processor, **options):
        assert options["threshold"] == 0.0
        return self

    def run_prompts(self, images, prompts, masks):
        for image in images:
            assert image.size == (96, 64)
            found = self.truth[self.images]
            self.images += 1
            boxes = torch.tensor([box for _, box in found], dtype=torch.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2] - 1
            labels = torch.tensor([label for label, _ in found], dtype=torch.long)
            yield {"scores": torch.full((len(found),), 0.9), "labels": labels, "boxes": boxes}


def test_perfect_detections_score_a_hundred(tmp_path, monkeypatch):
    folder = drawn_coco(tmp_path / "coco", val=7)
    content = json.loads((folder / "val.json").read_text())
    truth = [
        [
            (entry["category_id"] - 1, entry["bbox"])
            for entry in content["annotations"]
            if entry["image_id"] == image["id"]
        ]
        for image in content["images"]
    ]
    evaluator = DetectionEvaluator(Accelerator(), tiny_processor(), folder, "val", max_samples=6, progress=False)
    assert evaluator.labels == ["cat", "dog"]
    assert evaluator.category_ids == [1, 2]
    for found, expected in ((truth, 100), (truth[::-1], 0)):
        oracle = Oracle(found)
        monkeypatch.setattr(evaluation_module, "Detector", oracle)
        scores = evaluator(nn.Linear(1, 1))
        assert oracle.images == 6
        if expected:
            assert scores["AP"] == scores["AP50"] == scores["AR@100"] == pytest.approx(100)
            assert scores["APs"] == -1
        else:
            assert scores["AP"] < 50


@pytest.mark.parametrize(("count", "processes"), [(5, 1), (5, 2), (1, 2), (3, 8), (16, 4)])
def test_every_process_evaluates_equally_many(count, processes):
    dealt = [evaluation_module.process_indices(count, index, processes) for index in range(processes)]
    assert len({len(indices) for indices in dealt}) == 1
    assert {index for indices in dealt for index in indices} == set(range(count))
