"""hub_upload/push.py against a server that speaks the Hub's interface, and a fresh process that loads from it."""

import base64
import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial

import PIL.Image
import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.repocard import metadata_load
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from transformers import pipeline

from tests.hub.hub_server import HubServer
from tests.scripts import REPOSITORY, load_script
from tests.tiny_detector import LABELS, natural_image, tiny_detector, tiny_processor
from transformers_glipv2 import GLIPv2ForConditionalGeneration, GLIPv2ForObjectDetection, GLIPv2Model, GLIPv2Processor
from transformers_glipv2.cli.main import run_command
from transformers_glipv2.conversion.remote_code import code_files, model_auto_map, save_remote_code
from transformers_glipv2.hub import folder_checks, model_card, publishing

REPO = "someone/glipv2-test"

# What a user without the package does with a name on the Hub, in one process, since a start takes seconds.
SCRIPT = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_glipv2":
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
import PIL.Image, torch
from transformers import AutoModel, AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline

repo, image, labels = sys.argv[1], PIL.Image.open(sys.argv[2]), json.loads(sys.argv[3])
trust = {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(repo, **trust)
inputs = processor(images=image, text=[labels])
base = AutoModel.from_pretrained(repo, **trust)
with torch.no_grad():
    fused_text = base(**inputs).fused_text
detector = pipeline("zero-shot-object-detection", model=repo, device="cpu", **trust)
with torch.no_grad():
    logits = detector.model(**inputs).logits
print("RESULT" + json.dumps({
    "modules": sorted({type(one).__module__.split(".")[0] for one in (processor, base, detector, detector.model)}),
    "fused_text": fused_text.double().abs().sum().item(),
    "logits": logits.double().sum().item(),
    "found": detector(image, candidate_labels=labels, threshold=0.0, pre_nms_threshold=0.0, top_k=20),
    "leaked": [name for name in sys.modules if name.split(".")[0] == "transformers_glipv2"],
}))
"""


@pytest.fixture(scope="module")
def push():
    return load_script("hub_upload/push.py")


@pytest.fixture(scope="module")
def checks():
    return folder_checks


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What training leaves; tests work on copies."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny_detector().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "tiny")


@pytest.fixture
def server(push, monkeypatch):
    with HubServer() as server:
        monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint=server.url, token="of-a-test"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


@pytest.fixture
def results(tmp_path):
    """Numbers as evaluation scripts write them."""
    folder = tmp_path / "results"
    folder.mkdir()
    names = [f"{kind}_{name}" for kind in ("bbox", "segm") for name in ("AP", "AP50")]
    parts = {
        part: {**dict.fromkeys(names, 50.0), "bbox_AP": value}
        for part, value in (("seen", 30.126), ("held_out_pairs", 31.126), ("held_out_nouns", 7.5))
    }
    (folder / "scenes.json").write_text(json.dumps({"settings": {}, "results": parts}))
    scores = {"AP": 0.1234, "AP50": 0.25}
    (folder / "coco_mini.json").write_text(json.dumps({"coco": {"bbox": scores, "segm": scores}}))
    return folder


def run(push, folder, *options, results=None, repo_id=REPO):
    arguments = ["--folder", str(folder), "--repo_id", repo_id, *options]
    if (folder / "config.json").is_file():
        results = results or folder.parent / "no-results"
        results.mkdir(exist_ok=True)
        arguments += ["--card", "glipv2-nano", "--results", str(results)]
    return push.main(arguments)


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# A model -------------------------------------------------------------------------------------------------------------


def test_a_dry_run_completes_the_folder_and_sends_nothing(push, folder, server, results, capsys):
    assert run(push, folder, results=results) is None
    assert server.requests == []
    told = capsys.readouterr().out
    assert "nothing was sent" in told
    assert "mean IoU: no 'referring.json' yet; run `python examples/evaluate_referring.py" in told
    files = contents(folder)
    assert {"README.md", "LICENSE", "config.json", "model.safetensors", "tokenizer.json"} < files.keys()
    assert {file.name for file in code_files()} < files.keys()
    assert json.loads(files["config.json"])["auto_map"] == model_auto_map()

    (index,) = metadata_load(folder / "README.md")["model-index"]
    assert index["name"] == "glipv2-test"
    values = {
        (one["dataset"]["name"].split(",")[0], metric["name"]): metric["value"]
        for one in index["results"]
        for metric in one["metrics"]
    }
    # Boxes and masks of three parts of the scenes and of COCO, AP and AP50 each.
    assert [len(one["metrics"]) for one in index["results"]] == [2] * 8
    assert values["composite scenes", "box AP"] == 7.5
    assert values["121 images of COCO", "box AP"] == 12.34
    assert values["121 images of COCO", "box AP50"] == 25.0
    card = files["README.md"].decode()
    assert "| Detection | composite scenes, nouns of training | box AP | 30.13 | `python " in card
    assert "`detection_head`: boxes" in card
    assert "`mask_head`" not in card
    assert "{{" not in card.split("@inproceedings")[0]

    run(push, folder, results=results)
    assert contents(folder) == files


def test_a_push_sends_what_differs(push, folder, server, results, capsys):
    address = run(push, folder, "--push", "--private", results=results)
    repo = server.repos[f"models/{REPO}"]
    assert address.startswith(f"{server.url}/{REPO}/commit/")
    assert repo.settings["visibility"] == "private"
    assert repo.files == contents(folder)
    assert repo.large == {"model.safetensors"}
    assert "POST /api/validate-yaml" in server.requests

    run(push, folder, "--push", results=results)
    assert repo.commits == 1
    assert sum(request.startswith("PUT") for request in server.requests) == 1

    repo.files["no_longer_needed.py"] = b"pass\n"
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    run(push, folder, "--push", results=results)
    assert repo.commits == 2
    assert repo.files == contents(folder)
    assert sum(request.startswith("PUT") for request in server.requests) == 1


def test_without_a_token_nothing_is_made(push, folder, server, monkeypatch):
    monkeypatch.setattr(publishing, "HfApi", partial(HfApi, endpoint=server.url, token=False))
    with pytest.raises(Exception, match="401"):
        run(push, folder, "--push")
    assert server.repos == {}


SHIPPED = REPOSITORY / "hub_upload" / "glipv2-nano"


@pytest.mark.parametrize("name", ["tiny", "glipv2-nano"])
def test_a_fresh_process_loads_by_name(push, folder, server, tmp_path, name):
    if name == "glipv2-nano":
        if not (SHIPPED / "model.safetensors").is_file():
            pytest.skip(f"the shipped checkpoint is not at {SHIPPED}")
        folder = shutil.copytree(SHIPPED, tmp_path / name)
    run(push, folder, "--push")
    natural_image().save(tmp_path / "image.png")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"}
    arguments = [REPO, str(tmp_path / "image.png"), json.dumps(LABELS)]
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    fresh = json.loads(done.stdout.split("RESULT", 1)[1])
    assert fresh["modules"] == ["transformers_modules"]
    assert fresh["leaked"] == []
    assert f"GET /{REPO}/resolve/{server.repos[f'models/{REPO}'].sha}/model.safetensors" in server.requests

    processor = GLIPv2Processor.from_pretrained(folder)
    inputs = processor(images=natural_image(), text=[LABELS])
    with torch.no_grad():
        fused_text = GLIPv2Model.from_pretrained(folder).eval()(**inputs).fused_text
        logits = GLIPv2ForObjectDetection.from_pretrained(folder).eval()(**inputs).logits
    assert fresh["fused_text"] == pytest.approx(fused_text.double().abs().sum().item(), rel=1e-4)
    assert fresh["logits"] == pytest.approx(logits.double().sum().item(), rel=1e-4)
    detector = pipeline("zero-shot-object-detection", model=str(folder), device="cpu")
    expected = detector(natural_image(), candidate_labels=LABELS, threshold=0.0, pre_nms_threshold=0.0, top_k=20)
    assert len(expected) == 20
    assert [one["score"] for one in fresh["found"]] == pytest.approx([one["score"] for one in expected], abs=1e-4)
    for found, other in zip(fresh["found"], expected, strict=True):
        assert all(abs(found["box"][side] - other["box"][side]) <= 1 for side in other["box"])


# A Space -------------------------------------------------------------------------------------------------------------


def test_a_space_gets_its_model_and_the_drawing_code(push, server):
    space = REPOSITORY / "hub_upload" / "space"
    before = contents(space)
    run(push, space, "--model", "someone/other", "--push", repo_id="someone/demo")
    repo = server.repos["spaces/someone/demo"]
    assert repo.settings["sdk"] == "gradio"
    assert set(repo.files) == {"README.md", "app.py", "requirements.txt", "drawing.py"}
    metadata = repo.files["README.md"].decode()
    assert "models:\n- someone/other\n" in metadata
    assert "sdk: gradio" in metadata
    assert {name: text for name, text in contents(space).items() if name != "__pycache__"} == {
        name: text for name, text in before.items() if name != "__pycache__"
    }


# As a cloud gives them out: 64 random bytes.
AZURE_KEY = base64.b64encode(random.Random(0).randbytes(64)).decode()

# Refusals ------------------------------------------------------------------------------------------------------------


def problems_with(checks, folder, name, content, limit=100.0) -> list[str]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return checks.find_problems(folder, limit)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.md", "use hf_" + "aB3" * 11, "line 1, holds a Hugging Face token"),
        ("code.py", "\nkey = 'gh" + "p_" + "a1B2" * 9 + "'", "line 2, holds a GitHub token"),
        ("notes.txt", "AKIA" + "ABCD1234" * 2, "an AWS key"),
        ("notes.txt", "-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
        ("notes.txt", "https://me:" + "word@example.org/x", "a password in an address"),
        ("config.json", '{"api_' + 'key": "abcdef0123456789abcdef"}', "a secret"),
        ("config.json", '{"_name_or_path": "/home/me/models/nano"}', "the absolute path /home/me/models/nano"),
        ("notes.md", "see `C:\\Users\\me`", "the absolute path C:"),
        ("weights.pth", b"anything", "weights.pth is a pickle"),
        ("weights.txt", b"\x80\x04K\x01.", "weights.txt is a pickle"),
        ("large.json", "[" + "1," * 600_000 + "1]", "1.2 MB, more than the limit of 1"),
        ("notes.docx", "words", "not part of a checkpoint"),
        (".env", "A=b", "not part of a checkpoint"),
        ("notes.md", b"caf\xe9", "no UTF-8"),
        ("notes.md", "export AWS_SECRET_ACCESS_" + "KEY=abcdEFGH", "a secret"),
        ("notes.txt", "DATABASE_" + "PASSWORD='hunter2'", "a secret"),
        ("notes.txt", "api_" + "key = abcdef0123456789abcdef", "a secret"),
        ("notes.txt", "use wJalrXUtn" + "FEMI/K7MDENG/bPxRfiCYzEXAMP1EKEY here", "a key of a cloud"),
        ("config.json", '{"account": "' + AZURE_KEY + '"}', "a key of a cloud"),
        ("config.json", '{"auto_map": {"AutoModel": "other/repo--modeling.Model"}}', "'other/repo--modeling.Model'"),
        ("config.json", '{"a": [{"auto_map": {"AutoTokenizer": ["missing.A", null]}}]}', "'missing.A'"),
        ("image.png", b"no image", "image.png is damaged"),
        ("weights.safetensors", b"no weights", "weights.safetensors is damaged"),
    ],
)
def test_what_is_refused(checks, tmp_path, name, content, message):
    (problem,) = problems_with(checks, tmp_path, name, content, limit=1.0)
    assert message in problem
    assert problem.startswith(name)
    assert "aB3aB3" not in problem


TOKEN = "hf_" + "aB3" * 11


def save_image(path, comment=None, compressed=None, exif=None, behind="") -> None:
    image, texts = PIL.Image.new("RGB", (4, 4)), PngInfo()
    if compressed is not None:
        texts.add_itxt("Description", compressed, zip=True)
        texts.add_text("Comment", compressed, zip=True)
    if exif is not None:
        image.getexif()[0x010E] = exif
    image.save(path, pnginfo=texts, comment=comment or "", exif=image.getexif())
    path.write_bytes(path.read_bytes() + behind.encode())


@pytest.mark.parametrize(
    ("name", "write", "where"),
    [
        ("w.safetensors", lambda path: save_file({"a": torch.ones(1)}, path, metadata={"by": TOKEN}), "metadata"),
        ("w.safetensors", lambda path: save_file({TOKEN: torch.ones(1)}, path), "in its bytes"),
        (
            "w.safetensors",
            lambda path: save_file({"a": torch.tensor(list(f" {TOKEN} ".encode()), dtype=torch.uint8)}, path),
            "in its bytes",
        ),
        ("i.png", lambda path: save_image(path, compressed=TOKEN), "text 'Comment'"),
        ("i.png", lambda path: save_image(path, exif=TOKEN), "text 'exif'"),
        ("i.jpg", lambda path: save_image(path, comment=TOKEN), "text 'comment'"),
        ("i.jpg", lambda path: save_image(path, exif=TOKEN), "text 'exif'"),
        ("i.png", lambda path: save_image(path, behind=TOKEN), "in its bytes"),
        ("sub/folder/notes.md", lambda path: path.write_text(f"use {TOKEN}"), "line 1"),
        (f"{TOKEN}.md", lambda path: path.write_text(""), "in its name"),
    ],
)
def test_tokens_are_found_wherever_they_are(checks, tmp_path, name, write, where):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    problems = checks.find_problems(tmp_path, 1.0)
    assert problems
    assert any(where in problem for problem in problems)
    assert all("a Hugging Face token" in problem and problem.startswith(name) for problem in problems)


@pytest.mark.parametrize(
    ("name", "content", "mode"),
    [("a/b/run.py", "pass", 0o644), ("a/b/notes.txt", "#!/bin/sh", 0o644), ("a/notes.md", "words", 0o755)],
)
def test_code_in_sub_folders_is_refused(checks, tmp_path, name, content, mode):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(content)
    (tmp_path / name).chmod(mode)
    assert checks.find_problems(tmp_path, 1.0) == [f"{name} is code or executable in a sub-folder; take it away."]


def test_what_is_shipped_is_not_refused(checks, tmp_path):
    assert checks.find_problems(REPOSITORY / "hub_upload" / "space", 100.0) == []
    if not (SHIPPED / "model.safetensors").is_file():
        pytest.skip(f"the shipped checkpoint is not at {SHIPPED}")
    folder = shutil.copytree(SHIPPED, tmp_path / "nano")
    save_remote_code(folder)
    assert checks.find_problems(folder, 100.0) == []


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *[("--max_file_mb", value) for value in ("nan", "0", "-1", "inf")],
        *[("--repo_id", value) for value in ("nano", "a/b/c", "some one/nano", "<b>/nano", "user/na--me")],
        ("--model", "nano"),
    ],
)
def test_wrong_flags_are_refused(push, folder, capsys, flag, value):
    with pytest.raises(SystemExit) as stopped:
        run(push, folder, flag, value)
    assert stopped.value.code == 2
    assert f"argument {flag}: {value!r}" in capsys.readouterr().err


def test_archives_of_pytorch_are_pickles_under_any_name(checks, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.txt")
    assert checks.find_problems(tmp_path, 1.0) == [
        "weights.txt is a pickle, which runs code when it is loaded; save as safetensors instead."
    ]


def test_links_out_of_the_folder_are_refused(checks, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").symlink_to(tmp_path / "secret.json")
    (problem,) = checks.find_problems(tmp_path / "folder", 1.0)
    assert "leads out of the folder" in problem


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/docs/hub/model-cards and/or hub/repo",
        '{"cls_token": "[CLS]", "tokenizer_class": "BertTokenizer", "token_type_ids": "0123456789abcdef"}',
        "#!/usr/bin/env python",
        "a / b / c, 1/2/3, text/plain",
        "pad_token=tokenizer.pad_token, api_key = os.environ['API_KEY1234567890'], max_tokens = 256",
        "export HF_TOKEN=$TOKEN\nHF_TOKEN=<yours>",
        "a shelf_" + "aB3" * 11 + ", a desk-" + "a" * 24 + " and xAKIA" + "ABCD1234" * 2,
        "commit 6b95319d6af8d3fa7cea1753dea884e1e8c38012, src/transformers_glipv2/layers/paste_masks",
    ],
)
def test_what_is_not_refused(checks, tmp_path, text):
    assert problems_with(checks, tmp_path, "notes.md", text) == []


@pytest.mark.parametrize("card", [None, "---\nlicense: mit\n---\n\n# Mine\n"])
def test_the_command_publishes_a_folder_with_or_without_a_card(folder, server, capsys, card):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.bin").write_bytes(b"to go on with")
    (folder / "training_log.jsonl").write_text('{"loss": 1.0}\n')
    if card:
        (folder / "README.md").write_text(card)
        assert run_command(["push", str(folder), REPO]) == 2
        assert "'mit'; put the text of that licence into" in capsys.readouterr().err
        (folder / "LICENSE").write_text("as it is")
    assert run_command(["push", str(folder), REPO, "--dry_run", "--license", "apache-2.0"]) == 0
    assert server.requests == []
    assert run_command(["push", str(folder), REPO]) == 0
    assert f"{REPO} is at {server.url}/{REPO}/commit/" in capsys.readouterr().out
    files = server.repos[f"models/{REPO}"].files
    assert {"model.safetensors", "LICENSE", "training_log.jsonl", "modeling_glipv2.py"} < files.keys()
    assert not any("checkpoints" in name for name in files)
    readme = files["README.md"].decode()
    assert "# Mine" in readme if card else f"--model {REPO}" in readme and "license: apache-2.0" in readme


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none", REPO], "there is no folder 'none'"),
        (["FOLDER", "name"], "'name' is no USER/NAME"),
        (["FOLDER", REPO, "--max_file_mb", "0"], "'0' is not a number above 0"),
        (["FOLDER", REPO, "--max_file_mb", "0.001"], "more than the limit of 0.001"),
        (["."], "Missing argument"),
    ],
)
def test_wrong_arguments_of_the_command_are_refused(args, message, folder, server, capsys):
    assert run_command(["push", *(str(folder) if arg == "FOLDER" else arg for arg in args)]) == 2
    assert message in capsys.readouterr().err
    assert server.requests == []


def test_a_refused_folder_is_not_sent(push, folder, server):
    (folder / "notes.md").write_text("hf_" + "aB3" * 11)
    with pytest.raises(
        ValueError, match=r"1 problems in .*, nothing was sent: - notes.md, line 1, holds a Hugging Face"
    ):
        run(push, folder, "--push")
    (folder / "notes.md").unlink()
    (folder / "extra.py").write_text("pass\n")
    with pytest.raises(ValueError, match=r"extra.py.*none of the model's code"):
        run(push, folder, "--push")
    assert server.requests == []


def change(folder, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop("detection_head.log_scale"), "missing keys detection_head.log_scale"),
        (lambda weights: weights.update({"detection_head.log_scale": torch.zeros(2)}), "mismatched keys detection"),
        (lambda weights: weights["detection_head.text_bias"].fill_(float("nan")), "NaN .* detection_head.text_bias"),
        (lambda weights: weights.update({"optimizer.step": torch.zeros(1)}), "unexpected keys optimizer.step"),
        (lambda weights: weights.update({"model.extra": torch.zeros(1)}), "unexpected keys model.extra"),
    ],
)
def test_weights_of_another_model(checks, folder, edit, message):
    assert checks.check_model(folder).keys() == {"model", "detection_head"}
    change(folder, edit)
    with pytest.raises(ValueError, match=message):
        checks.check_model(folder)


def test_heads_of_another_config(checks, tmp_path):
    config = tiny_detector().config
    config.caption_region_attention = True
    GLIPv2ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    assert "caption_head" in checks.check_model(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "caption_region_attention": False}))
    with pytest.raises(ValueError, match=r"unexpected keys caption_head\.region_attention"):
        checks.check_model(tmp_path)


def test_missing_files(push, checks, folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        checks.check_model(folder)
    with pytest.raises(SystemExit):
        push.parse_args(["--folder", str(folder), "--repo_id", "no-owner"])


def test_results_are_read_and_never_invented(push, tmp_path):
    cards = model_card
    entry = {"file": "a.json", "keys": ["coco", "AP"], "command": "measure", "scale": 100}
    names = ("task_type", "dataset_type", "dataset_name", "metric_type", "metric_name")
    entry |= {name: name for name in names}
    found, missing = cards.read_results([entry], tmp_path)
    assert found == []
    assert missing == ["dataset_name, metric_name: no 'a.json' yet; run `measure`"]
    (tmp_path / "a.json").write_text('{"coco": {"AP": 0.12345, "names": ["a"]}}')
    ((result,), missing) = cards.read_results([entry], tmp_path)
    assert (result.metric_value, missing) == (12.35, [])
    with pytest.raises(ValueError, match="'dataset_name' and 'another' would show as one"):
        cards.read_results([entry, {**entry, "dataset_name": "another"}], tmp_path)
    for keys in (["coco", "AR"], ["coco"], ["lvis", "AP"], ["coco", "names"]):
        with pytest.raises(ValueError, match="no number at " + " > ".join(keys)):
            cards.read_results([{**entry, "keys": keys}], tmp_path)


@pytest.mark.parametrize("card", ["glipv2-nano", "glip-converted"])
def test_every_card_tells_what_users_must_know(push, card):
    text = (REPOSITORY / "hub_upload" / "cards" / f"{card}.md").read_text()
    for heading in ("Use", "Intended use", "Limits", "Results", "Training data and licences", "Citation"):
        assert f"\n## {heading}\n" in text
    description = json.loads((REPOSITORY / "hub_upload" / "cards" / f"{card}.json").read_text())
    assert {"license", "library_name", "pipeline_tag", "tags", "results"} <= description.keys()
    assert not [entry for entry in description["results"] if "metric_value" in entry]


@pytest.mark.parametrize("heads", [[], ["mask_head"], ["mask_head", "answer_head", "caption_head"]])
def test_the_card_shows_code_for_the_heads_that_are_there(push, folder, tmp_path, heads):
    config = json.loads((folder / "config.json").read_text())
    size = json.loads((folder / "processor_config.json").read_text())["image_processor"]["size"]
    parts = {"model": 1_000_000, "detection_head": 1000, **dict.fromkeys(heads, 2000)}
    template = REPOSITORY / "hub_upload" / "cards" / "glipv2-nano.md"
    card, _ = model_card.make_card(template, tmp_path, REPO, parts, config, size)
    text = str(card)
    examples = {
        "mask_head": "AutoModelForInstanceSegmentation",
        "answer_head": "AutoModelForVisualQuestionAnswering",
        "caption_head": "AutoModelForImageTextToText",
    }
    for head, name in examples.items():
        assert (name in text) == (head in heads) == (f"`{head}`" in text)
    assert text.count("{") == text.count("}")
    for block in text.split("```python\n")[1:]:
        compile(block.split("```")[0], "card", "exec")


def test_another_licence_needs_its_text(push, folder):
    arguments = ["--folder", str(folder), "--repo_id", REPO, "--card", "glip-converted"]
    with pytest.raises(ValueError, match=r"'mit'.*LICENSE"):
        push.main(arguments)
    (folder / "LICENSE").write_text("MIT License\n")
    assert push.main(arguments) is None
    assert (folder / "LICENSE").read_text() == "MIT License\n"
