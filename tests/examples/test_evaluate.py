"""Evaluation scripts on a tiny random model: one process or two, killed or not, the numbers are the same."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import set_seed

from tests.data.stub_processor import tiny_tokenizer
from tests.evaluation.helpers import read
from tests.scripts import load_script
from tests.tiny import tiny_config
from tests.tiny_training import drawn_coco
from transformers_glipv2 import GLIPv2Config, GLIPv2ImageProcessor, GLIPv2Processor
from transformers_glipv2.cli import detection_evaluation
from transformers_glipv2.cli.main import run_command
from transformers_glipv2.data.masks import decode_mask, encode_mask
from transformers_glipv2.evaluation.coco import evaluate_coco
from transformers_glipv2.evaluation.flickr30k import flickr30k_annotations
from transformers_glipv2.evaluation.odinw import ODINW_35
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering, answer_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMAGES = 24  # eight files of predictions
MAX_LENGTH = 192


evaluate_detection = load_script("examples/evaluate_detection.py")
evaluate_flickr30k = load_script("examples/evaluate_flickr30k.py")
evaluate_phrasecut = load_script("examples/evaluate_phrasecut.py")
evaluate_image_questions = load_script("examples/evaluate_image_questions.py")
evaluate_vqa = load_script("examples/evaluate_vqa.py")
evaluate_captions = load_script("examples/evaluate_captions.py")
predict_folder = load_script("examples/predict_folder.py")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with masks, and drawn images of cats and dogs."""
    folder = tmp_path_factory.mktemp("evaluate")
    text = {**tiny_config().text_config.to_diff_dict(), "max_position_embeddings": MAX_LENGTH}
    set_seed(0)
    # An untrained head scores below the usual candidates.
    fields = {"max_text_length": MAX_LENGTH, "score_threshold_before_nms": 0.0}
    model = GLIPv2ForInstanceSegmentation(tiny_config(text_config=text, **fields))
    model.save_pretrained(folder / "model")
    image_processor = GLIPv2ImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GLIPv2Processor(image_processor, tiny_tokenizer(MAX_LENGTH), MAX_LENGTH).save_pretrained(folder / "model")
    drawn_coco(folder / "coco", val=IMAGES)
    return folder


def test_the_documented_commands_are_ones_that_the_scripts_take():
    text = (EXAMPLES.parent / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    python examples/")]
    assert len(commands) > 10
    for _, script, *given in commands:
        load_script(script).parse_args(given)


def arguments(folder: Path, output: str, *more) -> list[str]:
    given = ["--model", folder / "model", "--annotations", folder / "coco" / "val.json", "--images", folder / "coco"]
    given += [
        "--output",
        folder / output,
        "--pre_nms_threshold",
        "0",
        "--max_detections",
        "10",
        "--images_per_file",
        "3",
    ]
    return [str(value) for value in (*given, "--batch_size", "2", *more)]


@pytest.fixture(scope="module")
def uninterrupted(folder) -> Path:
    AcceleratorState._reset_state(True)
    # As the processes below: sums depend on the number of threads in the last digit.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    evaluate_detection.main(arguments(folder, "uninterrupted"))
    torch.set_num_threads(threads)
    return folder / "uninterrupted"


def start(processes: int, given: list[str]) -> list[subprocess.Popen]:
    """The script on so many processes, as `accelerate launch` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(processes):
        own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **own}
        started.append(subprocess.Popen([sys.executable, evaluate_detection.__file__, *given], env=environment))
    return started


def test_scores_are_those_of_the_result_file(folder, uninterrupted):
    predictions = json.loads((uninterrupted / "predictions.json").read_text())
    assert {entry["image_id"] for entry in predictions} == set(range(IMAGES))
    assert set(predictions[0]) == {"image_id", "category_id", "bbox", "score"}
    metrics = json.loads((uninterrupted / "metrics.json").read_text())["coco"]["bbox"]
    scores = evaluate_coco(folder / "coco" / "val.json", predictions, progress=False)
    assert {name: metrics[name] for name in ("AP", "AR@100")} == {name: scores[name] for name in ("AP", "AR@100")}
    assert metrics["AR@100"] > 0


def test_killed_on_one_process_it_goes_on_on_two(folder, uninterrupted):
    shards = folder / "killed" / "predictions"
    (process,) = start(1, arguments(folder, "killed"))
    while process.poll() is None and len(list(shards.glob("predictions-*.json"))) < 2:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = sorted(shards.glob("predictions-*.json"))
    assert 2 <= len(left) < IMAGES // 3
    assert not (folder / "killed" / "metrics.json").exists()
    written = {path: path.stat().st_mtime_ns for path in left}

    both = start(2, arguments(folder, "killed"))
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    # What was there is kept, nothing is lost, and the bytes are those of one process that was left alone.
    assert {path: path.stat().st_mtime_ns for path in left} == written
    for name in ("predictions.json", "metrics.json"):
        assert (folder / "killed" / name).read_text() == (uninterrupted / name).read_text()


def test_augmentation_of_some_images(folder):
    more = ("--max_samples", "3", "--tta", "--image_size", "48", "64", "--max_detections", "300")
    metrics = evaluate_detection.main(arguments(folder, "augmented", *more))["coco"]["bbox"]
    predictions = json.loads((folder / "augmented" / "predictions.json").read_text())
    assert {entry["image_id"] for entry in predictions} == {0, 1, 2}
    scores = evaluate_coco(folder / "coco" / "val.json", predictions, image_ids=[0, 1, 2], progress=False)
    assert {name: metrics[name] for name in ("AP", "AR@100")} == {name: scores[name] for name in ("AP", "AR@100")}
    assert metrics["AR@100"] > 0


class AnnotatedDetector:
    """In place of the detector: the annotated boxes and masks of the images of a file, in its order."""

    def __init__(self, content):
        self.content = content
        self.images = iter(content["images"])

    def run_prompts(self, images, prompts, target_sizes, masks):
        return [self.find(image) for image in images]

    def find(self, image):
        entry = next(self.images)
        labels = [category["id"] for category in self.content["categories"]]
        own = [annotation for annotation in self.content["annotations"] if annotation["image_id"] == entry["id"]]
        corners = [(x, y, x + width - 1, y + height - 1) for x, y, width, height in (one["bbox"] for one in own)]
        names = [labels.index(annotation["category_id"]) for annotation in own]
        masks = [decode_mask(one.get("segmentation"), image.height, image.width) for one in own]
        result = {
            # And a wrong box of a low score.
            "scores": torch.tensor([0.9] * len(own) + [0.5]),
            "labels": torch.tensor([*names, 0]),
            "boxes": torch.tensor([*corners, (0, 0, 3, 3)]).float(),
        }
        if all(mask is not None for mask in masks):
            result["masks"] = [encode_mask(mask) for mask in (*masks, np.eye(64, 96) > 0)]
        return result


def test_right_boxes_and_masks_score_100_percent(folder, monkeypatch):
    content = json.loads((folder / "coco" / "val.json").read_text())
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    (folder / "coco" / "masks.json").write_text(json.dumps(content))
    more = ("--max_samples", "3", "--masks", "--annotations", str(folder / "coco" / "masks.json"))
    monkeypatch.setattr(detection_evaluation, "Detector", lambda *args, **kwargs: AnnotatedDetector(content))
    metrics = evaluate_detection.main(arguments(folder, "masks", *more))["coco"]
    assert {kind: scores["AP"] for kind, scores in metrics.items()} == {"bbox": 1.0, "segm": 1.0}
    AcceleratorState._reset_state(True)
    evaluate_detection.main(arguments(folder, "cut", *more, "--threshold", "0.6"))
    assert [len(read(folder / name / "predictions.json")) for name in ("masks", "cut")] == [6, 3]


def test_without_annotations_there_are_predictions_only(folder):
    content = json.loads((folder / "coco" / "val.json").read_text())
    del content["annotations"]
    (folder / "coco" / "test-dev.json").write_text(json.dumps(content))
    more = ("--max_samples", "2", "--annotations", str(folder / "coco" / "test-dev.json"))
    assert evaluate_detection.main(arguments(folder, "test-dev", *more)) == {}
    assert json.loads((folder / "test-dev" / "predictions.json").read_text())


def test_right_boxes_score_100_percent_by_both_protocols_of_lvis(folder, monkeypatch):
    content = json.loads((folder / "coco" / "val.json").read_text())
    for image in content["images"]:
        image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": []}
        image["coco_url"] = "http://images.cocodataset.org/" + image.pop("file_name")
    for category in content["categories"]:
        category["frequency"] = "r"
    (folder / "coco" / "lvis.json").write_text(json.dumps(content))
    more = ("--max_samples", "3", "--benchmark", "lvis", "--annotations", str(folder / "coco" / "lvis.json"))
    monkeypatch.setattr(detection_evaluation, "Detector", lambda *args, **kwargs: AnnotatedDetector(content))
    metrics = evaluate_detection.main(arguments(folder, "lvis", *more))["lvis"]
    scores = {kind: scores["APr"] for kind, scores in metrics.items()}
    assert scores == pytest.approx({"bbox_fixed": 1.0, "bbox_classic": 1.0})


def test_odinw_averages_over_sets(folder):
    content = json.loads((folder / "coco" / "val.json").read_text())
    for name in ("EgoHands_generic", "thermalDogsAndPeople"):
        path = ODINW_35[name].annotation_file(folder / "odinw")
        path.parent.mkdir(parents=True)
        shutil.copytree(folder / "coco" / "val", path.parent / "val")
        classes = ODINW_35[name].classes
        categories = [{"id": index, "name": label} for index, label in enumerate(classes, start=1)]
        annotations = [entry for entry in content["annotations"] if entry["category_id"] <= len(classes)]
        path.write_text(json.dumps({**content, "categories": categories, "annotations": annotations}))
    given = ["--model", folder / "model", "--images", folder / "odinw", "--output", folder / "odinw-out"]
    given += ["--benchmark", "odinw", "--max_samples", "3", "--pre_nms_threshold", "0", "--sets"]
    metrics = evaluate_detection.main([str(value) for value in (*given, "EgoHands_generic", "thermalDogsAndPeople")])
    each = [metrics[name]["bbox"]["AP"] for name in ("EgoHands_generic", "thermalDogsAndPeople")]
    assert metrics["average"] == pytest.approx(sum(each) / 2)
    with pytest.raises(FileNotFoundError, match="Raccoon"):
        evaluate_detection.main([str(value) for value in (*given, "Raccoon")])


def test_flickr30k(folder, metrics_dir):
    data = metrics_dir / "flickr30k" / "flickr30k_entities"
    (folder / "flickr").mkdir()
    sentences = flickr30k_annotations(data, progress=False)
    for entry in sentences:
        Image.new("RGB", (entry["width"] // 4, entry["height"] // 4)).save(folder / f"flickr/{entry['image_id']}.jpg")
    given = ["--model", folder / "model", "--data", data, "--images", folder / "flickr", "--max_samples", "3"]
    metrics = evaluate_flickr30k.main([str(value) for value in (*given, "--output", folder / "flickr-out")])
    chosen = list(dict.fromkeys(entry["image_id"] for entry in sentences if entry["phrases"]))[:3]
    count = sum(len(entry["phrases"]) for entry in sentences if entry["image_id"] in chosen)
    assert metrics["phrase_counts"]["all"] == count
    # Boxes of random weights cover half of an image here and there.
    assert metrics["merged_boxes"]["upper_bound"]["all"] > 0


def test_phrasecut(folder, metrics_dir, data_dir):
    data = metrics_dir / "phrasecut"
    names = {str(entry["image_id"]): entry["file_name"] for entry in read(data / "image_files.json")}
    (folder / "names.json").write_text(json.dumps({key: name for key, name in names.items() if name}))
    given = ["--model", folder / "model", "--data", data / "VGPhraseCut_v0", "--images", data_dir / "coco-mini"]
    given += ["--file_names", folder / "names.json", "--split", "miniv", "--output", folder / "phrasecut"]
    metrics = evaluate_phrasecut.main([str(value) for value in (*given, "--max_samples", "2")])
    assert metrics["evaluated_tasks"] + len(read(folder / "phrasecut" / "failures.json")) >= 2
    assert 0 <= metrics["all"]["mean_mask_iou"] < 1


@pytest.mark.parametrize("output_format", ["parquet", "coco"])
def test_labels_a_folder_and_lists_bad_images(folder, output_format):
    images = folder / "images"
    (images / "more").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (96, 64), "red").save(images / "b.png")
    Image.new("L", (64, 96)).save(images / "more" / "a.jpg")
    (images / "broken.png").write_bytes(b"no image")
    (images / "notes.txt").write_text("no image either")
    given = ["--model", folder / "model", "--images", images, "--labels", "cat", "dog", "--task", "masks"]
    given += ["--threshold", "0.05", "--max_detections", "4", "--output", folder / f"labelled-{output_format}"]
    path = predict_folder.main([str(value) for value in (*given, "--format", output_format)])
    assert list(read(path.parent / "failures.json")) == ["broken.png"]
    if output_format == "parquet":
        rows = pq.read_table(path).to_pylist()
        assert [row["image"] for row in rows] == ["b.png", "more/a.jpg"]
        assert all(len(row[name]) == len(row["scores"]) > 0 for row in rows for name in ("labels", "boxes", "masks"))
    else:
        content = read(path)
        assert [image["file_name"] for image in content["images"]] == ["b.png", "more/a.jpg"]
        # What it writes can be scored against itself.
        scores = evaluate_coco(content, content["annotations"], "segm", progress=False)
        assert scores["AP"] > 0.5


def test_ray_labels_as_the_local_engine_does(folder):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    images = folder / "for-ray"
    images.mkdir()
    for index, colour in enumerate(("red", "blue", "green", "white", "black")):
        Image.new("RGB", (96 - 8 * index, 64), colour).save(images / f"{index}.png")
    (images / "broken.png").write_bytes(b"no image")
    given = ["--model", folder / "model", "--images", images, "--labels", "cat", "dog", "--threshold", "0.05"]
    given += ["--batch_size", "2", "--images_per_file", "2"]
    local = predict_folder.main([str(value) for value in (*given, "--output", folder / "local")])
    AcceleratorState._reset_state(True)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        more = ("--engine", "ray", "--actors", "2", "--output", folder / "on-ray")
        on_ray = predict_folder.main([str(value) for value in (*given, *more)])
    finally:
        ray.shutdown()
    assert pq.read_table(on_ray).to_pylist() == pq.read_table(local).to_pylist()
    assert len(pq.read_table(local)) == 5
    assert read(on_ray.parent / "failures.json") == read(local.parent / "failures.json")


def test_an_image_that_failed_is_tried_again_by_the_same_command(folder, monkeypatch):
    images = folder / "mended"
    images.mkdir()
    for name in "abcde":
        Image.new("RGB", (96, 64), "red").save(images / f"{name}.png")
    whole = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(whole[:40])
    (images / "e.png").write_bytes(b"no image")
    given = ["--model", folder / "model", "--images", images, "--labels", "cat", "--threshold", "0"]
    given = [str(value) for value in (*given, "--images_per_file", "2", "--output", folder / "mended-out")]
    path = predict_folder.main(given)
    assert list(read(path.parent / "failures.json")) == ["b.png", "e.png"]
    shards = {file.name: file.stat().st_mtime_ns for file in (path.parent / "predictions").glob("predictions-*")}

    AcceleratorState._reset_state(True)
    (images / "b.png").write_bytes(whole)
    predict_folder.main(given)
    assert list(read(path.parent / "failures.json")) == ["e.png"]
    assert [row["image"] for row in pq.read_table(path).to_pylist()] == ["a.png", "b.png", "c.png", "d.png"]
    again = {file.name: file.stat().st_mtime_ns for file in (path.parent / "predictions").glob("predictions-*")}
    # Only the block of the image that can be read now was predicted again.
    assert [name for name in shards if shards[name] != again[name]] == [min(shards)]


def test_a_file_name_that_is_not_utf8(folder):
    images = folder / "names"
    images.mkdir()
    name = os.fsencode(images) + b"/caf\xe9.png"
    Image.new("RGB", (96, 64), "red").save(images / "plain.png")
    try:
        os.rename(images / "plain.png", name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    given = ["--model", folder / "model", "--images", images, "--labels", "cat", "--threshold", "0"]
    for output_format in ("parquet", "coco"):
        AcceleratorState._reset_state(True)
        more = ("--format", output_format, "--output", folder / f"names-{output_format}")
        path = predict_folder.main([str(value) for value in (*given, *more)])
        rows = read(path)["images"] if output_format == "coco" else pq.read_table(path).to_pylist()
        assert [row.get("image", row.get("file_name")) for row in rows] == ["caf\\udce9.png"]


def test_all_images_unreadable_is_an_error(folder):
    images = folder / "unreadable"
    (images / "val").mkdir(parents=True)
    for index in range(IMAGES):
        (images / "val" / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of the 24 images could be read; check --images\. The first:"):
        evaluate_detection.main(arguments(folder, "unreadable-out", "--images", str(images)))
    assert not (folder / "unreadable-out" / "metrics.json").exists()


def test_labels_a_data_set(folder):
    given = [
        "--model",
        folder / "model",
        "--dataset",
        folder / "coco" / "val",
        "--labels",
        "cat",
        "--max_samples",
        "2",
    ]
    path = predict_folder.main([str(value) for value in (*given, "--output", folder / "labelled-dataset")])
    assert [row["image"] for row in pq.read_table(path).to_pylist()] == ["train/0", "train/1"]


@pytest.fixture(scope="module")
def heads(folder) -> Path:
    """The same processor beside models that answer and that describe."""
    for name, model_class, more in (
        ("answers", GLIPv2ForVisualQuestionAnswering, answer_config(["yes", "no", "red"])),
        ("captions", GLIPv2ForConditionalGeneration, {}),
    ):
        shutil.copytree(folder / "model", folder / name)
        set_seed(0)
        model = model_class(GLIPv2Config.from_pretrained(folder / "model", **more))
        if name == "captions":
            model.set_special_tokens(tiny_tokenizer(MAX_LENGTH))
        model.save_pretrained(folder / name)
    return folder


def test_image_questions(heads, capsys):
    (heads / "asked").mkdir()
    Image.new("RGB", (96, 64), "red").save(heads / "asked" / "1.png")
    asked = ("is it red ?", "yes"), ("is it blue ?", "no"), ("is it round ?", "no"), ("what is this ?", "red")
    questions = [{"image_id": 1, "question": question, "answers": [answer]} for question, answer in asked]
    content = {"images": [{"id": 1, "file_name": "1.png"}], "questions": questions}
    (heads / "asked" / "questions.json").write_text(json.dumps(content))
    given = ["--model", heads / "answers", "--questions", heads / "asked" / "questions.json"]
    given += ["--output", heads / "asked.json"]
    scores = evaluate_image_questions.main([str(value) for value in given])
    assert scores == read(heads / "asked.json") and scores["questions"] == 4
    constant = scores["best constant answer"]
    assert constant["accuracy"] == 75 and constant["accuracy_is it"] == pytest.approx(200 / 3)
    for name in ("model", "blank images"):
        parts = (3 * scores[name]["accuracy_is it"] + scores[name]["accuracy_what is"]) / 4
        assert scores[name]["accuracy"] == pytest.approx(parts)
    assert "75.0 % of 4 questions" in capsys.readouterr().out


def test_vqa(heads):
    questions = [{"question_id": 10 + n, "image_id": n // 2, "question": "a cat ?"} for n in range(6)]
    answers = [{"answer": "yes"}] * 7 + [{"answer": "no"}] * 3
    more = {"answers": answers, "multiple_choice_answer": "yes", "question_type": "a", "answer_type": "yes/no"}
    annotations = [{name: entry[name] for name in ("question_id", "image_id")} | more for entry in questions]
    (heads / "questions.json").write_text(json.dumps({"questions": questions}))
    (heads / "answers.json").write_text(json.dumps({"annotations": annotations}))
    (heads / "vqa").mkdir()
    for index in range(2):  # the third image is missing
        Image.new("RGB", (96, 64), "red").save(heads / "vqa" / f"{index:012d}.jpg")
    given = ["--model", heads / "answers", "--questions", heads / "questions.json"]
    given += ["--images", heads / "vqa", "--annotations", heads / "answers.json"]
    metrics = evaluate_vqa.main([str(value) for value in (*given, "--output", heads / "vqa-out")])
    predictions = read(heads / "vqa-out" / "predictions.json")
    assert {entry["question_id"] for entry in predictions} == set(range(10, 16))
    assert [entry["answer"] for entry in predictions[4:]] == ["", ""]
    # The images are the same, and so are the answers.
    (answer,) = {entry["answer"] for entry in predictions[:4]}
    assert metrics["overall"] == pytest.approx({"yes": 100, "no": 90, "red": 0}[answer] * 4 / 6)


@pytest.mark.skipif(shutil.which("java") is None, reason="the tokenizer of caption scores is a Java program")
def test_captions(heads):
    images = [{"id": n, "file_name": f"{n}.png", "width": 96, "height": 64} for n in range(3)]
    annotations = [{"id": n, "image_id": n // 2, "caption": "A red dog."} for n in range(6)]
    path = heads / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    given = [
        "--model",
        heads / "captions",
        "--annotations",
        path,
        "--images",
        heads / "coco" / "val",
    ]
    given += ["--num_beams", "2", "--max_new_tokens", "4", "--metrics", "BLEU", "CIDEr"]
    metrics = evaluate_captions.main([str(value) for value in (*given, "--output", heads / "captions-out")])
    predictions = read(heads / "captions-out" / "predictions.json")
    assert [entry["image_id"] for entry in predictions] == [0, 1, 2]
    assert set(metrics) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "CIDEr", "per_image"}


def test_captions_of_a_folder(heads):
    given = [
        "--model",
        heads / "captions",
        "--images",
        heads / "coco" / "val",
        "--task",
        "captions",
    ]
    given += ["--num_beams", "1", "--max_new_tokens", "4", "--max_samples", "2"]
    path = predict_folder.main([str(value) for value in (*given, "--output", heads / "captioned")])
    rows = pq.read_table(path).to_pylist()
    assert [set(row) for row in rows] == [{"image", "width", "height", "caption"}] * 2
    more = ("--output", heads / "captioned-coco", "--format", "coco")
    content = read(predict_folder.main([str(value) for value in (*given, *more)]))
    assert [entry["caption"] for entry in content["annotations"]] == [row["caption"] for row in rows]
    with pytest.raises(SystemExit):
        predict_folder.parse_args([str(value) for value in (*given, "--labels", "cat", "--output", "x")])


def test_own_data_in_any_format_is_scored_by_its_splits(folder, tmp_path, capsys):
    convert = ["data", "convert", str(folder / "coco"), "--to", "yolo", "--output", str(tmp_path / "yolo")]
    assert run_command(convert) == 0
    common = ["--model", folder / "model", "--image_size", 64]
    file = folder / "coco" / "val.json"
    by_file = ["--annotations", file, "--images", folder / "coco", "--output", tmp_path / "coco"]
    by_data = ["--data", tmp_path / "yolo", "--output", tmp_path / "own"]
    expected, scores = (
        evaluate_detection.main([str(value) for value in (*common, *given)]) for given in (by_file, by_data)
    )
    assert scores["val"]["bbox"]["AP"] == pytest.approx(expected["coco"]["bbox"]["AP"], abs=1e-6)
    assert f"YOLO, data.yaml; val, {IMAGES} images" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"has no split 'test'; its only split is val.* by --split"):
        evaluate_detection.main([str(value) for value in (*common, *by_data, "--split", "test")])
