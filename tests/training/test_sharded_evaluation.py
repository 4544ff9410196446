"""Evaluation of models sharded by FSDP2 on two processes: ends, and finds what one process with whole models finds."""

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.tiny import tiny_config
from tests.tiny_training import drawn_coco, tiny_processor
from transformers_glipv2 import GLIPv2ForInstanceSegmentation
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering, answer_config
from transformers_glipv2.training import AnswerEvaluator, CaptionEvaluator, DetectionEvaluator

TASKS = ("boxes", "masks", "captions", "answers")
# An odd number of images for two processes.
IMAGES = 3


def make_model(task: str) -> nn.Module:
    # With this seed one process generates four tokens fewer than the other.
    torch.manual_seed(16)
    if task == "captions":
        model = GLIPv2ForConditionalGeneration(tiny_config())
        model.set_special_tokens(tiny_processor().tokenizer)
        # Strong weights, so that captions differ from image to image, also in length.
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and any(part in name for part in ("caption_head", "fusion", "text_layer")):
                parameter.data.mul_(6)
    elif task == "answers":
        model = GLIPv2ForVisualQuestionAnswering(tiny_config(**answer_config(["yes", "no", "red", "blue"])))
    else:
        model = GLIPv2ForInstanceSegmentation(tiny_config())
        model.detection_head.bias.data.fill_(0)
    return model.eval()


def images() -> list[Image.Image]:
    return [
        Image.new("RGB", (96, 64), (0, 20, 255)),
        Image.new("RGB", (96, 64), (90, 20, 165)),
        Image.new("RGB", (96, 64), (180, 20, 75)),
    ]


def evaluate(task: str, accelerator: Accelerator, model: nn.Module, folder: Path) -> Any:
    """What a model finds in three images."""
    processor = tiny_processor()
    if task == "captions":
        examples = [{"kind": "caption", "image": image, "text": "a cat"} for image in images()]
        evaluator = CaptionEvaluator(accelerator, processor, examples, max_new_tokens=8, batch_size=2, progress=False)
        evaluator(model)
        return evaluator.captions
    if task == "answers":
        examples = [{"image": image, "question": "a cat", "answers": ["yes"]} for image in images()]
        return AnswerEvaluator(accelerator, processor, examples, batch_size=2, progress=False)(model)
    options = {"masks": task == "masks", "batch_size": 2, "progress": False}
    evaluator = DetectionEvaluator(accelerator, processor, folder, "val", **options)
    scores = evaluator(model)
    return {"scores": scores, "predictions": evaluator.predictions}


def shard(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    layers = [*model.model.text_encoder.encoder.layer]
    if not isinstance(model, GLIPv2ForConditionalGeneration):
        # Captions take the tower's layers apart, so there only the whole model can be sharded.
        layers += model.model.layers
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def worker(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = {task: evaluate(task, accelerator, shard(make_model(task)), folder) for task in TASKS}
    (folder / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = drawn_coco(tmp_path_factory.mktemp("sharded") / "coco", val=IMAGES)
    content = json.loads((folder / "val.json").read_text())
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    (folder / "val.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def found(folder) -> list[dict[str, Any]]:
    """What two processes with a shard of each model found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    waiting = [process for process in processes if process.is_alive()]
    for process in waiting:
        process.kill()
    assert not waiting, "the processes wait for each other"
    assert [process.exitcode for process in processes] == [0, 0]
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_find_with_shards_what_one_finds(task, folder, found):
    AcceleratorState._reset_state(True)
    whole = evaluate(task, Accelerator(cpu=True), make_model(task), folder)
    one, other = (each[task] for each in found)
    assert one == other
    if task in ("captions", "answers"):
        assert one == whole
        assert task == "answers" or len({len(caption.split()) for caption in whole}) > 1
        return
    assert one["scores"] == pytest.approx(whole["scores"], abs=1e-3)
    assert len(one["predictions"]) == len(whole["predictions"]) > IMAGES
    for prediction, expected in zip(one["predictions"], whole["predictions"], strict=True):
        assert (prediction["image_id"], prediction["category_id"]) == (expected["image_id"], expected["category_id"])
        assert prediction["bbox"] == pytest.approx(expected["bbox"], abs=1e-2)
        assert ("segmentation" in prediction) == (task == "masks")
