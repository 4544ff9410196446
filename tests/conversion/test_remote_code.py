"""A folder with its code loads through the Auto classes in a fresh process that cannot import the package."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection, pipeline

from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import GLIPv2Config, GLIPv2ForObjectDetection, GLIPv2Model
from transformers_glipv2.conversion.remote_code import code_files, flat_code, model_auto_map, save_remote_code

TASK = "zero-shot-object-detection"

# What the other process runs: everything a user can do with the folder, in one go, since a start takes seconds.
SCRIPT = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_glipv2":
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
try:
    import transformers_glipv2
    raise SystemExit("the package is importable")
except ModuleNotFoundError:
    pass

import PIL.Image, torch
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForZeroShotObjectDetection,
                          AutoProcessor, ZeroShotObjectDetectionPipeline, pipeline)

folder, image, labels = sys.argv[1], PIL.Image.open(sys.argv[2]), json.loads(sys.argv[3])
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
pil = AutoImageProcessor.from_pretrained(folder, backend="pil", **trust)
model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, **trust)
base = AutoModel.from_pretrained(folder, **trust)
inputs = processor(images=image, text=[labels])
with torch.no_grad():
    outputs, features = model(**inputs), base(**inputs)
detections = processor.post_process_grounded_object_detection(
    outputs, text_labels=[labels], target_sizes=[(image.height, image.width)])[0]
detector = pipeline("zero-shot-object-detection", model=folder, device="cpu", **trust)
stock = pipeline("zero-shot-object-detection", model=folder, device="cpu",
                 pipeline_class=ZeroShotObjectDetectionPipeline, **trust)
classes = [type(one) for one in (config, processor, processor.image_processor, pil, model, base, detector)]
print("RESULT" + json.dumps({
    "classes": [f"{one.__module__.split('.')[0]}:{one.__name__}" for one in classes],
    "logits": outputs.logits.double().sum().item(),
    "fused_text": features.fused_text.double().sum().item(),
    "scores": detections["scores"].tolist(),
    "boxes": detections["boxes"].tolist(),
    "text_labels": detections["text_labels"],
    "pipeline": detector(image, candidate_labels=labels),
    "stock": stock(image, candidate_labels=labels[:2]),
    "leaked": [name for name in sys.modules if name.split(".")[0] == "transformers_glipv2"],
}))
"""


@pytest.fixture(scope="module")
def model() -> GLIPv2ForObjectDetection:
    return tiny_detector()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "glipv2-tiny-random"
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    save_remote_code(folder)
    return folder


@pytest.fixture(scope="module")
def fresh(folder, tmp_path_factory):
    """What the other process found."""
    work = tmp_path_factory.mktemp("fresh")
    natural_image().save(work / "image.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules"), "OMP_NUM_THREADS": "1"}
    arguments = [str(folder), str(work / "image.png"), json.dumps(LABELS)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *arguments],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.split("RESULT", 1)[1])


def test_every_part_comes_from_the_folder(fresh):
    assert fresh["leaked"] == []
    names = ["GLIPv2Config", "GLIPv2Processor", "GLIPv2ImageProcessor", "GLIPv2ImageProcessorPil"]
    names += ["GLIPv2ForObjectDetection", "GLIPv2Model", "GLIPv2ZeroShotObjectDetectionPipeline"]
    assert fresh["classes"] == [f"transformers_modules:{name}" for name in names]


def test_same_outputs_as_the_package(fresh, model):
    processor = tiny_processor()
    image = natural_image()
    inputs = processor(images=image, text=[LABELS])
    with torch.no_grad():
        outputs = model(**inputs)
    assert fresh["logits"] == pytest.approx(outputs.logits.double().sum().item(), rel=1e-4)
    assert fresh["fused_text"] == pytest.approx(outputs.fused_text.double().sum().item(), rel=1e-4, abs=1e-3)
    (expected,) = processor.post_process_grounded_object_detection(
        outputs, text_labels=[LABELS], target_sizes=[(image.height, image.width)]
    )
    assert fresh["text_labels"] == expected["text_labels"]
    torch.testing.assert_close(torch.tensor(fresh["scores"]), expected["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(fresh["boxes"]), expected["boxes"], atol=1e-2, rtol=0)


def boxes(found: list[dict]) -> list[tuple]:
    return [(one["label"], one["box"]) for one in found]


def test_same_pipelines_as_the_package(fresh, folder):
    detector = pipeline(TASK, model=str(folder), device="cpu")
    expected = detector(natural_image(), candidate_labels=LABELS)
    assert len(expected) > 0
    assert [(one["label"], one["box"]) for one in fresh["pipeline"]] == [
        (one["label"], one["box"]) for one in expected
    ]
    alone = [one for label in LABELS[:2] for one in detector(natural_image(), candidate_labels=[label])]
    alone.sort(key=lambda one: -one["score"])
    assert boxes(fresh["stock"]) == boxes(alone)


def test_installed_code_wins_and_needs_no_trust(folder):
    assert type(AutoModelForZeroShotObjectDetection.from_pretrained(folder)) is GLIPv2ForObjectDetection
    assert not hasattr(GLIPv2Config.from_pretrained(folder), "custom_pipelines")
    assert type(pipeline(TASK, model=str(folder), device="cpu").model) is GLIPv2ForObjectDetection


def test_every_registered_head_is_in_the_map(folder):
    references = json.loads((folder / "config.json").read_text())["auto_map"]
    assert references == model_auto_map()
    assert references["AutoModel"] == f"modeling_glipv2.{GLIPv2Model.__name__}"
    for reference in references.values():
        file, name = reference.split(".")
        assert f"\nclass {name}(" in (folder / f"{file}.py").read_text()


def test_code_is_flat():
    """What the Hub cannot follow: imports of packages, of the package by name, and from above."""
    names = {file.stem for file in code_files()}
    for file in code_files():
        for line in flat_code(file).splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].startswith("."):
                assert words[1][1:] in names, f"{file.name}: {line}"
            assert words[1:2] not in (["transformers_glipv2"], ["__future__"]) or words[0] not in ("from", "import")


def test_saving_code_twice_changes_nothing(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    save_remote_code(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json.*save_pretrained"):
        save_remote_code(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="'bert'"):
        save_remote_code(tmp_path)
    assert not list(tmp_path.glob("*.py"))
