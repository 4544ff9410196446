"""
README.md, docs/ and the card of the checkpoint do what they say.

- Every ```python block runs, all blocks of a page in one namespace, in a folder laid out like a checkout: with the
  checkpoint and the photographs of this repository, and with small files where the pages use what a reader makes or
  downloads (`outputs/...`, data sets, the peers' Hub ids as folders). A ```text block after a ```python block is what
  that block prints.
- Every command line for Python and of `glipv2` is read by its parser, which looks for the files that it names, every
  `make` target exists, every data file (```yaml with `sources`) is accepted.
- Every test, file and page that is referred to exists, every quoted error is one that the code can raise, and numbers
  of parameters are those that are tested.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    SwinConfig,
)
from typer.main import get_command

from tests.cli import transcript
from tests.conftest import REPOSITORY
from tests.data.stub_processor import tiny_tokenizer
from tests.test_sizes import PARAMETERS
from tests.tiny_detector import SIZE
from tests.tiny_training import drawn_coco
from transformers_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2Processor,
)
from transformers_glipv2.cli.main import app
from transformers_glipv2.conversion.remote_code import save_remote_code
from transformers_glipv2.layers.prompt_tuning import add_prompt_tuning, save_prompt_tuning
from transformers_glipv2.training import prepare_tuning, read_data_file

NANO = REPOSITORY / "hub_upload" / "glipv2-nano"
CARD = NANO / "README.md"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SCRIPTS = ("benchmarks/", "examples/", "hub_upload/", "docs/")
CLASSES = ("raccoon",)
# An image on the web, which the card opens; the tests put another in its place.
PHOTOGRAPH = "http://images.cocodataset.org/val2017/000000039769.jpg"


def page_id(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


page_names = pytest.mark.parametrize("page", PAGES, ids=page_id)


# What pages hold -----------------------------------------------------------------------------------------------------


def fenced_blocks(text: str) -> list[tuple[str, int, str]]:
    """(language, number of its first line, content) of every fenced block."""
    blocks, language, start, content = [], None, 0, []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.fullmatch(r"```(\w*)", line.strip())
        if fence is None:
            content.append(line)
        elif language is None:
            language, start, content = fence[1], number + 1, []
        else:
            blocks.append((language, start, "\n".join(content)))
            language = None
    assert language is None, f"the block from line {start} is never closed"
    return blocks


def python_blocks(page: Path) -> list[tuple[int, str]]:
    return [(start, code) for language, start, code in fenced_blocks(page.read_text()) if language == "python"]


def command_lines(page: Path) -> list[list[str]]:
    """The words of each command in fenced shell blocks and indented lines; `\\` at an end joins lines."""
    text = page.read_text()
    shell = [code for language, _, code in fenced_blocks(text) if language in ("", "bash", "sh", "console")]
    prose = re.sub(r"(?ms)^```.*?^```", "", text)
    shell.append("\n".join(line for line in prose.splitlines() if line.startswith("    ")))
    lines = re.sub(r"\\\n\s*", " ", "\n".join(shell)).splitlines()
    commands = []
    for line in lines:
        line = re.sub(r"^\s*(\$ )?((?:\w+=\S+ )*)", "", line)
        # What a command prints begins with its name too: `glipv2 detect: error: ...`.
        if line.startswith(("python ", "accelerate ", "make ", "glipv2 ")) and not re.match(r"glipv2 \w+:", line):
            commands.append(shlex.split(line, comments=True))
    return commands


# A reader's folder ---------------------------------------------------------------------------------------------------


def roboflow_folder(folder: Path) -> None:
    """`train`, `valid` and `test`, each with its images beside `_annotations.coco.json`."""
    drawn_coco(folder, train=4, valid=2, test=2)
    for split in ("train", "valid", "test"):
        file = folder / f"{split}.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            image["file_name"] = image["file_name"].removeprefix(f"{split}/")
        content["categories"] = [{**content["categories"][0], "name": CLASSES[0]}]
        content["annotations"] = [box for box in content["annotations"] if box["category_id"] == 1]
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
        file.unlink()


def tuned_models(folder: Path) -> None:
    """What fine-tuning leaves: a whole model, a tuned prompt, adapters."""
    (folder / "raccoon").mkdir()
    for file in NANO.iterdir():
        (folder / "raccoon" / file.name).symlink_to(file)
    config = json.loads((NANO / "config.json").read_text())
    (folder / "raccoon" / "config.json").unlink()
    (folder / "raccoon" / "config.json").write_text(json.dumps({**config, "labels": list(CLASSES)}))
    processor = GLIPv2Processor.from_pretrained(NANO)
    prompted = GLIPv2ForObjectDetection.from_pretrained(NANO)
    add_prompt_tuning(prompted, processor.tokenizer, ". ".join(CLASSES))
    save_prompt_tuning(prompted, folder / "raccoon-prompt")
    adapted = prepare_tuning(GLIPv2ForObjectDetection.from_pretrained(NANO), "lora", processor)
    adapted.save_pretrained(folder / "raccoon-lora")
    for name in ("raccoon-prompt", "raccoon-lora"):
        processor.save_pretrained(folder / name)


def published_nano(folder: Path) -> None:
    """The checkpoint with its code, as on the Hub."""
    folder.mkdir(parents=True)
    for file in NANO.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, folder)
    (folder / "model.safetensors").symlink_to(NANO / "model.safetensors")
    save_remote_code(folder)


def peers(folder: Path) -> None:
    """Grounding DINO and OWLv2, tiny, in folders named as on the Hub."""
    grounding_dino = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=SwinConfig(
                embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
            ),
            text_config=BertConfig(
                vocab_size=128, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
            ),
            d_model=64,
            num_queries=8,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
        )
    )
    grounding_dino.save_pretrained(folder / "IDEA-Research/grounding-dino-tiny")
    image_processor = GroundingDinoImageProcessor(size=SIZE)
    processor = GroundingDinoProcessor(image_processor, tiny_tokenizer(256))
    processor.save_pretrained(folder / "IDEA-Research/grounding-dino-tiny")

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    owlv2 = Owlv2ForObjectDetection(
        Owlv2Config(
            text_config={**sizes, "vocab_size": 128},
            vision_config={**sizes, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
    )
    owlv2.save_pretrained(folder / "google/owlv2-base-patch16-ensemble")
    image_processor = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    Owlv2Processor(image_processor, tiny_tokenizer(16)).save_pretrained(folder / "google/owlv2-base-patch16-ensemble")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for copied in ("docs/images", "hub_upload/glipv2-nano"):
        (folder / copied).parent.mkdir()
        (folder / copied).symlink_to(REPOSITORY / copied)
    (folder / "glip-tiny").symlink_to(NANO)
    (folder / "outputs").mkdir()
    tuned_models(folder / "outputs")
    published_nano(folder / "transformers-glipv2" / "glipv2-nano")
    peers(folder)
    roboflow_folder(folder / "raccoon")
    (folder / "my_images").symlink_to("raccoon")
    (folder / "outputs" / "mine").symlink_to(NANO)
    drawn_coco(folder / "coco-mini", train=2, val=2)
    (folder / "labels.txt").write_text("person\ndog\n")
    (folder / "data.yaml").write_text("sources: [{kind: coco, path: coco-mini, split: train}]\n")
    shutil.copytree(REPOSITORY / "examples" / "configs", folder / "examples" / "configs")
    (folder / "examples" / "serve.py").symlink_to(REPOSITORY / "examples" / "serve.py")
    return folder


# Tests ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in (*PAGES, CARD) if python_blocks(page)], ids=page_id)
def test_python_blocks_run(page, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("GLIPV2_CACHE", str(checkout / "cache"))
    namespace = {"__name__": page.stem}
    last = printed = ""
    text = page.read_text().replace(PHOTOGRAPH, "docs/images/astronaut.jpg")
    for language, start, content in fenced_blocks(text):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                # Line numbers of errors are those of the page.
                exec(compile("\n" * (start - 1) + content, str(page), "exec"), namespace)
            printed = output.getvalue()
        elif language == "text" and last == "python":
            assert_reads_alike(printed, content)
        last = language


def assert_reads_alike(printed: str, expected: str) -> None:
    """The same words; numbers may differ by 0.03 (fractions) or 3 (pixels), as they do between machines."""
    number = re.compile(r"\d+(?:\.\d+)?")
    assert number.sub("#", printed).split() == number.sub("#", expected).split(), f"printed:\n{printed}"
    for got, said in zip(number.findall(printed), number.findall(expected), strict=True):
        assert float(got) == pytest.approx(float(said), abs=0.03 if "." in said else 3), f"printed:\n{printed}"


@page_names
def test_commands_are_read_by_their_scripts(page, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    targets = re.findall(r"(?m)^([\w-]+):", (REPOSITORY / "Makefile").read_text())
    for words in command_lines(page):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets), words
        elif words[0] == "accelerate":
            assert words[1] == "launch", words
            read_launch(words[2:])
        elif words[0] == "glipv2":
            if page != transcript.PAGE:  # its lines run in tests/cli/test_transcript.py
                read_glipv2(words[1:])
        elif words[1] == "-m":
            read_command(importlib.import_module(words[2]), words[2], words[3:], monkeypatch)
        elif words[1].startswith(SCRIPTS):
            read_command(load_script(words[1]), words[1], words[2:], monkeypatch)
        else:
            pytest.fail(f"{page.name}: no script of the repository: {shlex.join(words)}")


def read_launch(words: list[str]) -> None:
    """An `accelerate launch` line: its own options, then those of the script."""
    launch = launch_command_parser().parse_args(words)
    if launch.config_file is not None:
        assert Path(launch.config_file).is_file(), launch.config_file
    if "..." in launch.training_script_args:
        assert (REPOSITORY / launch.training_script).is_file(), launch.training_script
    else:
        load_script(launch.training_script).parse_args(launch.training_script_args)


class Parsed(Exception):  # noqa: N818
    """A script has read its arguments."""


def read_glipv2(words: list[str]) -> None:
    """A `glipv2` line: its options, and that the files it names are there."""
    command, path = get_command(app), ["glipv2"]
    context = SimpleNamespace(obj=None, find_root=lambda: SimpleNamespace(obj=None))
    while hasattr(command, "get_command") and words and not words[0].startswith("-"):
        command = command.get_command(context, words[0])
        assert command is not None, words[0]
        path.append(words[0])
        words = words[1:]
    # `--help` and `--version` end with Exit.
    with contextlib.suppress(typer.Exit), contextlib.redirect_stdout(io.StringIO()):
        command.make_context(" ".join(path), list(words))


def read_command(module, name: str, words: list[str], monkeypatch) -> None:
    """Lets a script read its arguments; without a `parse_args` of its own its `main` is ended once it has."""
    if "..." in words:
        return
    if hasattr(module, "parse_args"):
        module.parse_args(words)
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *arguments):
        parse(parser, *arguments)
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [name, *words])
        module.main()


def load_script(path: str):
    """The module of a script; a name is loaded once."""
    name = "docs_" + re.sub(r"\W", "_", path)
    if name not in sys.modules:
        assert (REPOSITORY / path).is_file(), path
        # Scripts of a folder may import each other.
        sys.path.insert(0, str((REPOSITORY / path).parent))
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        sys.path.pop(0)
        AcceleratorState._reset_state(True)
    return sys.modules[name]


@page_names
def test_data_files_are_accepted(page, tmp_path):
    for language, _, content in fenced_blocks(page.read_text()):
        if language == "yaml" and "sources:" in content:
            (tmp_path / "data.yaml").write_text(content)
            assert read_data_file(tmp_path / "data.yaml").sources


@page_names
def test_what_is_referred_to_exists(page):
    text = page.read_text()
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        assert (REPOSITORY / file).is_file(), file
        assert f"def {name}(" in (REPOSITORY / file).read_text(), f"{file}::{name}"
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:src|docs|examples|tests|hub_upload)/[\w./-]+\.(?:py|md|yaml|svg|json))`", text)
    # TASK and NAME stand for what a reader adds.
    paths = [path for path in paths if not re.search("TASK|NAME", path)]
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, CARD], ids=page_id)
def test_options_are_those_of_the_code(page):
    """Also those in sentences, which no parser reads."""
    option = r"(?<![\w-])--[a-z][\w-]*"
    # Of programs that are not ours.
    known = {"--logdir", *launch_command_parser()._option_string_actions}
    for folder in ("src", "examples", "benchmarks", "hub_upload", "docs", "tests"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            known.update(re.findall(option, file.read_text()))
    assert sorted(set(re.findall(option, page.read_text())) - known) == []


def test_quoted_errors_are_those_of_the_code():
    """In the first column of a table, `...` stands for what an error fills in."""
    strings = set()
    for file in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                strings.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.add(node.value)
    text = "\1".join(re.sub("`", "", string) for string in strings)
    errors = re.findall(r"(?m)^\| `([^|]+)` \|", (REPOSITORY / "docs" / "troubleshooting.md").read_text())
    assert errors
    patterns = {error: "[^\1]*".join(re.escape(part) for part in error.split("...")) for error in errors}
    assert [error for error, pattern in patterns.items() if not re.search(pattern, text)] == []


def test_numbers_of_parameters_are_those_that_are_tested():
    rows = {}
    for line in (REPOSITORY / "docs" / "sizes.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in PARAMETERS and len(cells) > 3 and re.fullmatch(r"[\d.]+", cells[1]):
            rows[cells[0]] = tuple(float(cell) for cell in cells[1:4])
    assert rows == {name: pytest.approx(counts, abs=0.1) for name, counts in PARAMETERS.items()}


def test_the_figure_is_the_one_that_the_script_draws():
    figure = REPOSITORY / "docs" / "figures" / "model.svg"
    assert load_script("docs/draw_model.py").draw_model() == figure.read_text()
    assert figure.stat().st_size < 200_000


def test_images_of_pages_are_images():
    for image in (REPOSITORY / "docs" / "figures").glob("*.png"):
        Image.open(image).verify()
