"""examples/finetune_vqa.py and finetune_captioning.py on small scenes; ask.py and caption.py on what they leave."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from tests.data.scene_assets_folder import make_assets
from tests.scripts import load_script
from tests.tiny_training import read_log, tiny_checkpoint
from transformers_glipv2 import (
    GLIPv2ForInstanceSegmentation,
    GLIPv2ForObjectDetection,
    GLIPv2ForPreTraining,
    GLIPv2Processor,
)
from transformers_glipv2.modeling_glipv2_captioning import GLIPv2ForConditionalGeneration
from transformers_glipv2.modeling_glipv2_vqa import GLIPv2ForVisualQuestionAnswering

finetune_vqa = load_script("examples/finetune_vqa.py")
finetune_captioning = load_script("examples/finetune_captioning.py")
evaluate_scenes = load_script("examples/evaluate_scenes_vqa_captioning.py")
benchmark_captions = load_script("benchmarks/captions.py")
ablation = load_script("benchmarks/ablation.py")
pretrain = load_script("examples/pretrain.py")
ask = load_script("examples/ask.py")
caption = load_script("examples/caption.py")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps its settings for the life of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vqa_captioning")
    tiny_checkpoint(folder / "model")
    make_assets(folder / "assets")
    for kind in ("vqa", "caption"):
        source = f"kind: scenes, path: assets, size: 64, kinds: {{{kind}: 1.0}}"
        (folder / f"{kind}.yaml").write_text(
            f"sources: [{{{source}}}]\nevaluation: {{{source}, split: test, max_samples: 4}}\n"
        )
    return folder


def arguments(folder: Path, kind: str, model: str, output: str, *more: str) -> list[str]:
    given = ["--model", folder / model, "--data", folder / f"{kind}.yaml", "--output", folder / output]
    given += ["--num_steps", "2", "--batch_size", "4", "--eval_steps", "1", "--learning_rate", "1e-3", *more]
    return [str(value) for value in given]


def test_a_head_learns_from_cached_questions(folder, capsys):
    cached = ["--train", "head", "--cached_questions", "8", "--num_steps", "20", "--eval_steps", "20"]
    finetune_vqa.main(arguments(folder, "vqa", "model", "cached", *cached))
    losses = [line["loss"] for line in read_log(folder / "cached") if "loss" in line]
    assert losses[-1] < losses[0]
    assert changed_parts(folder / "model", folder / "cached") == {"answer_head"}
    for wrong, message in ((["--cached_questions", "8"], "--train head"), ([*cached[:3], "3"], "batch of 4")):
        with pytest.raises(SystemExit):
            finetune_vqa.parse_args(arguments(folder, "vqa", "model", "wrong", *wrong))
        assert message in capsys.readouterr().err


def changed_parts(before: Path, after: Path) -> set[str]:
    """First parts of the names of tensors that differ or are new."""
    old, new = (load_file(path / "model.safetensors") for path in (before, after))
    assert old.keys() <= new.keys()
    return {name.split(".")[0] for name in new if name not in old or not torch.equal(old[name], new[name])}


@pytest.fixture(scope="module")
def both(folder) -> Path:
    """A folder with an answer head and a caption head, trained one after the other over frozen weights."""
    AcceleratorState._reset_state(True)
    finetune_vqa.main(arguments(folder, "vqa", "model", "answers", "--train", "head"))
    AcceleratorState._reset_state(True)
    finetune_captioning.main(
        arguments(folder, "caption", "answers", "both", "--train", "head", "--region_attention", "--num_beams", "2")
    )
    return folder / "both"


def test_heads_are_trained_one_after_the_other_into_one_folder(folder, both):
    assert changed_parts(folder / "model", folder / "answers") == {"answer_head"}
    assert changed_parts(folder / "answers", both) == {"caption_head"}
    answers = GLIPv2ForVisualQuestionAnswering.from_pretrained(both)
    assert {"yes", "left", "3", "chair"} <= set(answers.config.label2id)
    captions = GLIPv2ForConditionalGeneration.from_pretrained(both)
    assert captions.caption_head.region_attention is not None
    tokenizer = GLIPv2Processor.from_pretrained(both).tokenizer
    assert captions.generation_config.eos_token_id == tokenizer.sep_token_id

    metrics = json.loads((folder / "answers" / "metrics.json").read_text())
    assert metrics["answers"] == answers.config.num_labels
    assert "accuracy" in metrics["evaluation"]
    assert 0 < metrics["best_constant_answers"]["accuracy"] <= 100
    metrics = json.loads((both / "metrics.json").read_text())
    assert {"CIDEr", "Bleu_4"} <= set(metrics["greedy"])
    assert {"CIDEr", "Bleu_4"} <= set(metrics["2 beams"])
    assert set(metrics["grounded"]) == {"phrase_precision", "phrase_recall", "R@1"}
    assert len(json.loads((both / "captions.json").read_text())) == 4


def test_heads_of_either_order_leave_all_others_and_the_boxes_as_they_are(folder):
    start = folder / "every-head"
    shutil.copytree(folder / "model", start)
    masks = GLIPv2ForInstanceSegmentation.from_pretrained(start)
    masks.save_pretrained(start, state_dict={**load_file(start / "model.safetensors"), **masks.state_dict()})
    captions_first = ["--train", "head", "--region_attention", "--num_beams", "1"]
    finetune_captioning.main(arguments(folder, "caption", "every-head", "captions", *captions_first))
    AcceleratorState._reset_state(True)
    finetune_vqa.main(arguments(folder, "vqa", "captions", "captions-answers", "--train", "head"))
    output = folder / "captions-answers"
    assert changed_parts(start, output) == {"answer_head", "caption_head"}
    heads = {name.split(".")[0] for name in load_file(output / "model.safetensors")} - {"model"}
    assert heads == {f"{name}_head" for name in ("detection", "mlm", "contrastive", "mask", "answer", "caption")}

    captions = GLIPv2ForConditionalGeneration.from_pretrained(output)
    tokenizer = GLIPv2Processor.from_pretrained(output).tokenizer
    tokens = captions.generate(pixel_values=torch.zeros(1, 3, 64, 64), max_new_tokens=2)
    assert tokens[0, 0] == tokenizer.cls_token_id
    assert captions.caption_head.region_attention is not None
    assert "yes" in captions.config.label2id
    inputs = GLIPv2Processor.from_pretrained(output)(
        images=Image.effect_noise((96, 64), 99).convert("RGB"), text="a cat. a dog", return_tensors="pt"
    )
    with torch.no_grad():
        before, after = (GLIPv2ForObjectDetection.from_pretrained(path)(**inputs) for path in (start, output))
    # The weights are the same to the bit; where a file holds them decides on the last bit of sums.
    for name in ("logits", "centerness", "pred_boxes"):
        torch.testing.assert_close(before[name], after[name], atol=1e-5, rtol=1e-5)


def test_training_all_learns_boxes_with_answers(folder):
    metrics = finetune_vqa.main(arguments(folder, "vqa", "model", "all-answers"))
    assert metrics["best_step"] in (1, 2)
    line = read_log(folder / "all-answers")[0]
    assert {"loss_answer", "loss_box", "loss_intra"} <= line.keys()
    # The head's rate is fifty times that of the rest.
    assert line["lr_head"] == pytest.approx(50 * line["lr_base"])
    old, new = (load_file(folder / name / "model.safetensors") for name in ("model", "all-answers"))
    changed = {name.split(".")[0] for name in old.keys() & new.keys() if not torch.equal(old[name], new[name])}
    assert changed == {"model", "detection_head"}
    # Heads over weights that have changed are not kept.
    assert {name.split(".")[0] for name in new} == {"model", "detection_head", "answer_head"}


def test_training_all_for_captions_and_another_size(folder):
    finetune_captioning.main(
        arguments(folder, "caption", "model", "all-captions", "--image_size", "48", "--num_beams", "1")
    )
    assert {"loss", "loss_caption"} <= read_log(folder / "all-captions")[0].keys()
    size = GLIPv2Processor.from_pretrained(folder / "all-captions").image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (48, 72)


def test_image_ablated_runs_see_no_image(folder):
    metrics = finetune_vqa.main(arguments(folder, "vqa", "model", "ablated", "--train", "head", "--ablate_images"))
    assert metrics["image_ablated"]
    vqa_collator = finetune_vqa.AnswerCollator(lambda rows: {"pixel_values": torch.ones(1, 3, 4, 4)}, ["yes"], False)
    batch = vqa_collator([{"kind": "vqa", "answers": ["yes"] * 10}])
    assert not batch["pixel_values"].any()
    assert batch["answer_labels"].tolist() == [[1.0]]


def test_both_heads_are_scored_beside_what_sees_no_image(folder, both, monkeypatch):
    # The official tokenizer, a Java program, is tested elsewhere and takes a second each time.
    monkeypatch.setattr(shutil, "which", lambda name: None)
    output = folder / "scores.json"
    given = ["--model", both, "--assets", folder / "assets", "--max_samples", 6, "--num_beams", 2]
    given += ["--ablated_vqa", folder / "answers", "--ablated_captioning", both, "--output", output]
    results = evaluate_scenes.main([str(value) for value in given])
    written = json.loads(output.read_text())
    assert written["results"] == results
    assert written["settings"]["max_samples"] == 6
    answers, captions = results["vqa"], results["captioning"]
    assert answers["questions"].pop("all") == sum(answers["questions"].values()) == 6
    for name in ("model", "image-ablated", "most frequent answer"):
        assert answers[name].keys() == {"accuracy", *(f"accuracy_{kind}" for kind in answers["questions"])}
    for name in ("greedy", "2 beams", "captions of other scenes", "best constant caption", "image-ablated"):
        assert {"CIDEr", "Bleu_4"} <= captions[name].keys()
    assert captions["best constant caption"]["CIDEr"] >= captions["captions of other scenes"]["CIDEr"]
    assert captions["grounded"].keys() == {"phrase_precision", "phrase_recall", "R@1"}


def test_the_best_constant_caption_is_the_one_that_says_most_of_all_rows(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    rows = [{"text": "a dog and a ball"}, {"text": "a red cat"}, {"text": "a dog, a cat", "captions": ["a dog", "x"]}]
    chosen = evaluate_scenes.best_constant_caption(rows)
    scores = {row["text"]: evaluate_scenes.caption_scores(rows, [row["text"]] * 3)["CIDEr"] for row in rows}
    assert scores[chosen] == max(scores.values()) > min(scores.values())


def test_speed_of_captions(both, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        given = [
            "--model",
            both,
            "--tokens",
            3,
            "--repeats",
            1,
            "--threads",
            threads,
            "--output",
            tmp_path / "table.md",
        ]
        results = benchmark_captions.main([str(value) for value in given])
    finally:
        torch.set_num_threads(threads)
    for row in results.values():
        cached, recomputed, ratio = row.values()
        assert ratio == pytest.approx(cached / recomputed, rel=0.2)
    assert (tmp_path / "table.md").read_text() == capsys.readouterr().out[-len((tmp_path / "table.md").read_text()) :]


def test_endless_data_needs_a_number_of_steps(folder):
    given = arguments(folder, "vqa", "model", "endless")
    del given[given.index("--num_steps") : given.index("--num_steps") + 2]
    with pytest.raises(ValueError, match="num_steps"):
        finetune_vqa.main(given)


def test_ask_draws_answers_and_boxes(folder, both, capsys):
    image, output = folder / "asked.png", folder / "drawn" / "asked.png"
    Image.new("RGB", (96, 64), "white").save(image)
    given = ["--model", both, "--image", image, "--question", "a red chair?", "--threshold", "0", "--top_k", "3"]
    result = ask.main([str(value) for value in (*given, "--output", output)])
    printed = capsys.readouterr().out
    assert len(result["answers"]) == 3
    assert all(entry["answer"] in printed for entry in result["answers"])
    assert [phrase["phrase"] for phrase in result["phrases"]] == ["a red chair"]
    assert Image.open(output).size == (96, 64)
    assert Image.open(output).tobytes() != Image.open(image).tobytes()


def test_caption_draws_the_caption_and_boxes(folder, both, capsys):
    image, output = folder / "described.png", folder / "drawn" / "described.png"
    Image.new("RGB", (96, 64), "white").save(image)
    given = [
        "--model",
        both,
        "--image",
        image,
        "--prefix",
        "the red cat",
        "--max_new_tokens",
        "3",
        "--threshold",
        "0",
    ]
    result = caption.main([str(value) for value in (*given, "--output", output)])
    assert result["caption"].startswith("the red cat")
    assert result["caption"] in capsys.readouterr().out
    assert result["phrases"][0]["phrase"].startswith("the red cat")
    assert Image.open(output).tobytes() != Image.open(image).tobytes()


def test_pre_training_learns_answers_and_captions_beside_boxes(folder):
    kinds = "{detection: 1.0, vqa: 1.0, caption: 1.0}"
    (folder / "all.yaml").write_text(f"sources: [{{kind: scenes, path: assets, size: 64, kinds: {kinds}}}]\n")
    given = ["--model", folder / "model", "--data", folder / "all.yaml", "--num_steps", "2", "--batch_size", "8"]
    given += ["--eval_steps", "1", "--learning_rate", "1e-3"]
    boxes = [*given, "--output", folder / "boxes", "--loss_weights", "mlm=0"]
    pretrain.main([str(value) for value in boxes])
    assert "loss_mlm" not in read_log(folder / "boxes")[0]
    AcceleratorState._reset_state(True)
    joint = [str(value) for value in (*given, "--output", folder / "joint", "--vqa_captioning")]
    pretrain.main([*joint, "--num_steps", "1"])
    AcceleratorState._reset_state(True)
    pretrain.main([*joint, "--resume", "latest"])
    lines = read_log(folder / "joint")
    assert [line["step"] for line in lines] == [1, 2]
    assert {"loss_box", "loss_inter", "loss_mlm", "loss_answer", "loss_caption"} <= {*lines[0], *lines[1]}
    for model_class in (GLIPv2ForVisualQuestionAnswering, GLIPv2ForConditionalGeneration, GLIPv2ForPreTraining):
        info = model_class.from_pretrained(folder / "joint", output_loading_info=True)[1]
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]


def test_the_row_with_answers_and_captions_differs_from_all_losses_in_that_alone():
    given = ["--model", "m", "--data", "d.yaml", "--assets", "a", "--output", "o", "--rows", "all"]
    args = ablation.parse_args([*given, ablation.VQA_CAPTIONING, "--", "--num_steps", "3"])
    assert args.rows == ["all", ablation.VQA_CAPTIONING]
    alone, beside = (ablation.training_run(row, args) for row in args.rows)
    assert beside.arguments == (*alone.arguments, "--vqa_captioning")
    assert beside.folder != alone.folder
    pretrain.parse_args([*beside.arguments, "--output", "o"])
