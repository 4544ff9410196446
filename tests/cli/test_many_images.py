"""`glipv2 predict` and `glipv2 evaluate`: the same files and numbers as the scripts, and slips in one line."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from tests.scripts import load_script
from tests.tiny_detector import save_tiny_heads
from tests.tiny_training import drawn_coco
from transformers_glipv2.cli.main import run_command

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("pycocotools")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models, drawn images with boxes, and an image beside them."""
    folder = tmp_path_factory.mktemp("many")
    save_tiny_heads(folder)
    drawn_coco(folder / "coco", train=1, val=3)
    Image.new("RGB", (60, 40), "red").save(folder / "red.png")
    (folder / "labels.txt").write_text("red square\n\nblue square\n")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(autouse=True)
def at_home(folder, monkeypatch):
    """In that folder, and with Accelerate's settings made anew."""
    AcceleratorState._reset_state(True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GLIPV2_TRACEBACK", raising=False)
    yield
    AcceleratorState._reset_state(True)


PREDICT = ["predict", "--model", "model", "--device", "cpu"]


def test_a_folder_gives_the_same_file_as_the_script(capsys):
    labels = ["--labels_file", "labels.txt", "--threshold", "0"]
    assert run_command([*PREDICT, "coco/val", *labels, "--output", "by-command", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"file": "by-command/predictions.parquet", "failures": {}}
    AcceleratorState._reset_state(True)
    script = load_script("examples/predict_folder.py")
    path = script.main(["--model", "model", "--images", "coco/val", *labels, "--output", "by-script"])
    rows = pq.read_table(said["file"]).to_pylist()
    assert rows == pq.read_table(path).to_pylist()
    assert len(rows) == 3


def test_files_and_folders_together_and_captions(capsys):
    short = ["--num_beams", "1", "--max_new_tokens", "3"]
    given = ["--task", "captions", *short, "--batch_size", "auto", "--format", "coco", "--output", "captions"]
    assert run_command([*PREDICT, "red.png", "coco/val", *given]) == 0
    assert "4 images in captions/predictions.json; 0 could not be read" in capsys.readouterr().out
    content = json.loads(Path("captions/predictions.json").read_text())
    assert content["images"][0]["file_name"] == "red.png"
    assert len(content["annotations"]) == 4


def test_another_format_is_written_without_predicting_again(capsys):
    labels = ["--labels_file", "labels.txt", "--threshold", "0", "--max_detections", "3", "--output", "labelled"]
    assert run_command([*PREDICT, "coco/val", *labels]) == 0
    rows = pq.read_table("labelled/predictions.parquet").to_pylist()
    made = {file: file.stat().st_mtime_ns for file in Path("labelled/predictions").iterdir()}
    for format, name in (("yolo", "yolo/data.yaml"), ("cvat", "annotations.xml"), ("csv", "predictions.csv")):
        AcceleratorState._reset_state(True)
        assert run_command([*PREDICT, "coco/val", *labels, "--format", format]) == 0
        assert Path("labelled", name).exists()
    assert made == {file: file.stat().st_mtime_ns for file in Path("labelled/predictions").iterdir()}
    assert len(list(Path("labelled/yolo/images").iterdir())) == len(rows) == 3
    lines = [line for file in Path("labelled/yolo/labels").iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == sum(len(row["boxes"]) for row in rows) > 0


def test_own_data_is_scored(capsys):
    asked = ["--split", "val", "--batch_size", "2", "--output", "scores", "--device", "cpu", "--json"]
    assert run_command(["evaluate", "--data", "coco", "--model", "model", *asked]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads(Path("scores/metrics.json").read_text())
    AcceleratorState._reset_state(True)
    script = load_script("examples/evaluate_detection.py")
    given = ["--data", "coco", "--split", "val", "--output", "by-script-too", "--batch_size", "auto"]
    by_script = script.main(["--model", "model", *given])
    assert by_script["val"]["bbox"]["AP"] == pytest.approx(scores["val"]["bbox"]["AP"], abs=1e-6)


def test_compiled_in_batches_that_fit(monkeypatch):
    compiled = []
    # Tracing takes long, and is tested with the detector.
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(function) or function)
    given = ["--labels_file", "labels.txt", "--threshold", "0.01"]
    rows = []
    for name, more in (("plain", []), ("compiled", ["--compile", "--batch_size", "auto"])):
        assert run_command([*PREDICT, "coco/val", *given, "--output", name, *more]) == 0
        rows.append(pq.read_table(f"{name}/predictions.parquet").to_pylist())
        AcceleratorState._reset_state(True)
    assert len(compiled) == 2
    for one, other in zip(*rows, strict=True):
        assert one["image"] == other["image"]
        assert one["labels"] == other["labels"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_the_backends_score_the_same(folder, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("GLIPV2_CACHE", str(folder / "cache"))
    predicted, scores = [], []
    for backend in ("torch", "onnx"):
        given = ["--labels", "red square", "--threshold", "0.01", "--output", f"by-{backend}", "--backend", backend]
        assert run_command([*PREDICT, "red.png", *given]) == 0
        predicted += pq.read_table(f"by-{backend}/predictions.parquet").to_pylist()
        AcceleratorState._reset_state(True)
        asked = ["--split", "val", "--output", f"scores-{backend}", "--backend", backend]
        assert run_command(["evaluate", "--data", "coco", "--model", "model", *asked]) == 0
        scores.append(json.loads(Path(f"scores-{backend}/metrics.json").read_text())["val"]["bbox"])
        AcceleratorState._reset_state(True)
    assert predicted[0]["scores"] == pytest.approx(predicted[1]["scores"], abs=1e-4)
    assert scores[0]["AP"] == pytest.approx(scores[1]["AP"], abs=1e-4)


EVALUATE = ["evaluate", "--data", "coco", "--model", "model"]
SLIPS = [
    ([*PREDICT, "red.png", "--labels", "cat", "--task", "masks", "--format", "csv"], "'csv' holds no masks"),
    ([*PREDICT, "--labels", "cat"], "give images, or a data set by --dataset"),
    ([*PREDICT, "red.png", "--dataset", "user/data", "--labels", "cat"], "give images, or a data set by --dataset"),
    ([*PREDICT, "red.png"], "boxes and masks need --labels"),
    ([*PREDICT, "red.png", "--labels", "cat", "--task", "captions"], "captions take none"),
    ([*PREDICT, "red.png", "--labels", "cat", "--task", "boxen"], "'boxen' is not one of"),
    ([*PREDICT, "red.png", "--task", "captions", "--backend", "onnx"], "captions are made by PyTorch only"),
    ([*PREDICT, "none.png", "--labels", "cat"], "there is no file or folder 'none.png'"),
    ([*PREDICT, "empty", "--labels", "cat"], "holds no image files"),
    ([*PREDICT, "red.png", "--labels_file", "none.txt"], "--labels_file: there is no file 'none.txt'"),
    ([*PREDICT, "red.png", "--labels", "cat", "--task", "masks"], "no weights for mask_head"),
    ([*PREDICT, "red.png", "--labels", "cat", "--output", "red.png"], "a file; pass a folder to write into"),
    ([*PREDICT, "red.png", "--labels", "cat", "--device", "cuda:99"], "--device is 'cuda:99'"),
    (["evaluate", "--model", "model"], "--data is needed, or --annotations"),
    (["evaluate", "--data", "none", "--model", "model"], "--data: there is no file or folder 'none'"),
    (["evaluate", "coco", "--model", "model"], "extra argument(s) (coco); name the data by --data"),
    (["train", "coco", "--model", "model"], "Missing option '--data'"),
    ([*EVALUATE, "more"], "name the data by --data"),
    (["predict", "--images", "coco/val", "--model", "model"], "write IMAGES without --images"),
    (["data", "convert", "--data", "coco", "--to", "yolo"], "write DATA without --data"),
    ([*EVALUATE, "--split", "test"], "test"),
    ([*EVALUATE, "--benchmark", "lvis"], "goes with --benchmark coco"),
    ([*EVALUATE, "--benchmark", "voc"], "'voc' is not one of"),
    ([*EVALUATE, "--image_size", "256,320"], "give one, or merge several with --tta"),
    ([*EVALUATE, "--tta", "--masks"], "--tta merges boxes only"),
    ([*EVALUATE, "--model", "none/at/all"], "--model: there is no folder"),
]
WRONG_VALUES = {
    "--threshold": ("1.5", "nan"),
    "--nms_threshold": ("-1",),
    "--batch_size": ("0",),
    "--num_workers": ("-1",),
    "--images_per_file": ("0",),
    "--max_samples": ("0",),
    "--max_detections": ("x",),
    "--mixed_precision": ("fp8",),
    "--device": ("gpu",),
}
SLIPS += [
    ([*right, flag, value], flag)
    for right in ([*PREDICT, "red.png", "--labels", "cat"], EVALUATE)
    for flag, values in WRONG_VALUES.items()
    for value in values
]


@pytest.mark.parametrize(("args", "message"), SLIPS, ids=lambda value: str(value)[-40:])
def test_a_slip_is_one_line_and_code_2(args, message, capsys):
    assert run_command(args) == 2
    said = capsys.readouterr()
    *_, line = said.err.splitlines()
    assert line.startswith(f"glipv2 {args[0]}: error: ")
    assert message in line
