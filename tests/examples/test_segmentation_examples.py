"""Scripts that train, draw, score and time masks, on drawn images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from tests.data.scene_assets_folder import make_assets
from tests.scripts import load_script
from tests.tiny_training import drawn_coco, read_log, tiny_checkpoint
from transformers_glipv2 import GLIPv2ForPreTraining
from transformers_glipv2.cli import training
from transformers_glipv2.modeling_glipv2_segmentation import GLIPv2ForInstanceSegmentation

pytest.importorskip("pycocotools")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def add_masks(folder: Path, split: str) -> None:
    """The drawn squares as polygons, but for the last one."""
    path = folder / f"{split}.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"][:-1]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pre-trained checkpoint without masks, and drawn images with them."""
    folder = tmp_path_factory.mktemp("segmentation")
    # An untrained head scores below the usual candidates.
    tiny_checkpoint(folder / "model", score_threshold_before_nms=0.0)
    drawn_coco(folder / "coco", train=6, val=3)
    for split in ("train", "val"):
        add_masks(folder / "coco", split)
    return folder


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    AcceleratorState._reset_state(True)
    arguments = ["--model", folder / "model", "--data", folder / "coco", "--output", folder / "masks"]
    arguments += ["--num_steps", 4, "--batch_size", 2, "--eval_steps", 2, "--test_split", "val"]
    load_script("examples/finetune_segmentation.py").main([str(argument) for argument in arguments])
    return folder / "masks"


def test_the_mask_head_learns_and_nothing_else_changes(folder, trained):
    before, after = (load_file(path / "model.safetensors") for path in (folder / "model", trained))
    assert set(before) < set(after)
    assert {name.split(".")[0] for name in set(after) - set(before)} == {"mask_head"}
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    lines = [line for line in read_log(trained) if "loss" in line]
    assert lines
    assert all("loss_mask" in line and "loss_box" not in line for line in lines)
    # One folder for every task.
    for model_class in (GLIPv2ForInstanceSegmentation, GLIPv2ForPreTraining):
        _, report = model_class.from_pretrained(trained, output_loading_info=True)
        assert not any(report.values())


def test_masks_and_boxes_are_scored(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["train"] == "head"
    for scores in (metrics["evaluation"], metrics["val"]):
        for name in ("AP", "AP50", "box_AP", "box_AP50"):
            assert 0 <= scores[name] <= 100
    assert metrics["val"] == metrics["evaluation"]


def test_everything_learns_from_a_data_file(folder, trained):
    lines = ["sources:", "  - {kind: coco, path: coco, split: train, with_masks: true}", "sizes: [64]", "max_size: 96"]
    (folder / "data.yaml").write_text("\n".join(lines))
    arguments = ["--model", trained, "--data", folder / "data.yaml", "--output", folder / "all", "--train", "full"]
    arguments += ["--num_steps", 1, "--batch_size", 2]
    load_script("examples/finetune_segmentation.py").main([str(argument) for argument in arguments])
    before, after = (load_file(path / "model.safetensors") for path in (trained, folder / "all"))
    assert not torch.equal(before["detection_head.text_bias"], after["detection_head.text_bias"])
    assert not torch.equal(before["mask_head.text_bias"], after["mask_head.text_bias"])
    (line,) = (line for line in read_log(folder / "all") if "loss" in line)
    assert {"loss_box", "loss_intra", "loss_mask"} <= set(line)


def test_without_images_to_evaluate_on_the_last_weights_stay(folder, trained, tmp_path):
    drawn_coco(tmp_path / "nuts", train=4, test=2)
    for split in ("train", "test"):
        add_masks(tmp_path / "nuts", split)
    arguments = ["--model", trained, "--data", tmp_path / "nuts", "--output", tmp_path / "out"]
    arguments = [str(value) for value in [*arguments, "--num_steps", 1, "--batch_size", 2, "--test_split", "test"]]
    module = load_script("examples/finetune_segmentation.py")
    metrics = module.main([*arguments, "--eval_split", "none"])
    assert "evaluation" not in metrics and 0 <= metrics["test"]["AP"] <= 100
    GLIPv2ForInstanceSegmentation.from_pretrained(tmp_path / "out")
    AcceleratorState._reset_state(True)
    with pytest.raises(ValueError, match="has no split 'minival'; its splits are train, val, test"):
        module.main([*arguments, "--eval_split", "minival"])
    AcceleratorState._reset_state(True)
    with pytest.raises(ValueError, match="has no split 'val'; its splits are train, test"):
        module.main([*arguments, "--val_fraction", "0"])


def test_resuming_goes_on_exactly(folder, trained, monkeypatch):
    common = ["--model", folder / "model", "--data", folder / "coco", "--output", folder / "resumed"]
    common += ["--num_steps", 4, "--batch_size", 2, "--eval_steps", 2]
    module = load_script("examples/finetune_segmentation.py")
    real = training.train

    def interrupted(accelerator, model, optimizer, make_loader, plan, **options):
        def loader(step):
            for index, batch in enumerate(make_loader(step)):
                if step + index == 3:
                    raise KeyboardInterrupt
                yield batch

        return real(accelerator, model, optimizer, loader, plan, **options)

    monkeypatch.setattr(training, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.main([str(argument) for argument in common])
    monkeypatch.setattr(training, "train", real)
    AcceleratorState._reset_state(True)
    module.main([str(argument) for argument in [*common, "--resume", "latest"]])
    # The last weights, whichever were best.
    one, other = (load_file(path / "last" / "model.safetensors") for path in (trained, folder / "resumed"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, msg=lambda text, name=name: f"{name}: {text}")


def test_segment_draws_instances(folder, trained, capsys):
    arguments = ["--model", trained, "--image", folder / "coco/train/0.png", "--labels", "cat", "dog"]
    arguments += ["--threshold", 0.0, "--mask_threshold", 0.2, "--output", folder / "out/drawn.png"]
    arguments += ["--json", folder / "results.json", "--device", "cpu"]
    found = load_script("examples/segment.py").main([str(argument) for argument in arguments])
    drawn = Image.open(folder / "out/drawn.png")
    assert drawn.size == (96, 64)
    assert not np.array_equal(np.asarray(drawn), np.asarray(Image.open(folder / "coco/train/0.png")))
    saved = json.loads((folder / "results.json").read_text())
    assert [entry["label"] for entry in saved] == [entry.label for entry in found]
    assert saved[0]["mask"]["size"] == [64, 96]
    assert f"{found[0].score:.3f}" in capsys.readouterr().out


def test_segment_draws_a_phrase_or_says_that_there_is_nothing(folder, trained, capsys):
    segment = load_script("examples/segment.py")
    common = ["--model", trained, "--image", folder / "coco/train/0.png", "--phrase", "the red cat"]
    common += ["--output", folder / "phrase.png", "--device", "cpu"]
    (found,) = segment.main([str(argument) for argument in [*common, "--threshold", 0.0]])
    assert found.mask.shape == (64, 96)
    assert segment.main([str(argument) for argument in [*common, "--threshold", 1.0]]) == []
    assert "try a lower --threshold" in capsys.readouterr().out


def test_the_head_of_a_phrase_or_all_of_it():
    head_span = load_script("examples/evaluate_referring.py").head_span
    assert head_span("the red cup left of the bottle") == (0, len("the red cup"))
    assert head_span("above") == (0, len("above"))


def test_referring_phrases_are_scored(folder, trained, tmp_path):
    make_assets(tmp_path / "assets", object_crops=3)
    arguments = ["--model", trained, "--assets", tmp_path / "assets", "--max_samples", 3, "--device", "cpu"]
    arguments = [str(argument) for argument in [*arguments, "--output", tmp_path / "referring.json"]]
    evaluate = load_script("examples/evaluate_referring.py")
    results = evaluate.main(arguments)
    assert json.loads((tmp_path / "referring.json").read_text())["results"] == {"referring": results}
    assert results["phrases"] == 3
    assert list(results)[1:] == ["found", "mean_IoU", "cumulative_IoU", *(f"Pr@0.{digit}" for digit in range(5, 10))]
    assert all(0 <= results[name] <= 100 for name in list(results)[1:])
    assert evaluate.main(arguments) == results


def test_a_sheet_of_masks_is_drawn(trained, folder, tmp_path):
    make_assets(tmp_path / "assets", object_crops=3)
    draw_segments = load_script("docs/draw_segments.py")
    arguments = ["--model", trained, "--assets", tmp_path / "assets", "--coco", folder / "coco", "--max_samples", 2]
    draw_segments.main([str(value) for value in [*arguments, "--output", tmp_path / "out" / "sheet.jpg"]])
    sheet = Image.open(tmp_path / "out" / "sheet.jpg")
    assert sheet.size == (3 * 384, 4 * (288 + 22))
    assert (tmp_path / "out" / "sheet.jpg").stat().st_size <= 250_000
    tiles = np.asarray(sheet).reshape(4, 310, 3, 384, 3).swapaxes(1, 2)
    assert all(tile.std() > 10 for row in tiles for tile in row)
    with pytest.raises(SystemExit):
        draw_segments.parse_args(["--model", str(trained)])
    with pytest.raises(SystemExit):
        draw_segments.parse_args(["--model", str(trained), "--coco", str(folder / "coco"), "--failures"])


def test_failures_are_the_scenes_with_the_lowest_f1(trained, tmp_path, monkeypatch):
    """Of five scenes of which the model of the test finds all but the third and the fourth."""
    make_assets(tmp_path / "assets", object_crops=3)
    draw_segments = load_script("docs/draw_segments.py")
    monkeypatch.setattr(draw_segments, "FAILURES", 2)
    monkeypatch.setattr(draw_segments, "FAILURES_OF", 5)
    args = draw_segments.parse_args(["--model", str(trained), "--assets", str(tmp_path / "assets"), "--failures"])
    scenes = draw_segments.test_scenes(args.assets, "seen", 5, draw_segments.NEGATIVES, args.seed)
    truth = {scene["image"].tobytes(): scene for scene in (scenes[index] for index in range(5))}
    missed = {scenes[index]["image"].tobytes() for index in (2, 3)}

    def find(model, processor, image, labels, threshold):
        scene = truth[image.tobytes()]
        boxes = torch.tensor(scene["objects"]["bbox"]).float().reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2] - 1
        count = 0 if image.tobytes() in missed else len(boxes)
        names = scene["objects"]["category"][:count]
        indices = torch.tensor([labels.index(name) for name in names], dtype=torch.long)
        return [{"scores": torch.full((count,), 0.9), "labels": indices, "boxes": boxes[:count]}]

    monkeypatch.setattr(draw_segments, "detect_labels", find)
    worst = draw_segments.failures(args, None, None)
    assert [one["image"].tobytes() for one in worst] == [scenes[index]["image"].tobytes() for index in (2, 3)]


def test_masks_are_timed_beside_boxes(trained):
    benchmark = load_script("benchmarks/masks.py")
    arguments = ["--model", trained, "--labels", "cat", "dog", "--masks", 5, "--repeats", 1, "--threads", 1]
    args = benchmark.parse_args([str(value) for value in [*arguments, "--large", 400, 300, "--large_masks", 7]])
    threads = torch.get_num_threads()
    try:
        seconds, memory = benchmark.time_both(args), benchmark.most_memory(args)
    finally:
        torch.set_num_threads(threads)
    assert seconds["count"] >= 5 and min(seconds["boxes"], seconds["masks"]) > 0
    assert memory["count"] >= 7 and memory["total"] >= memory["loaded"] > 0
