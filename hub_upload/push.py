"""
Makes a folder ready for the Hub, checks it, and publishes it.

    python hub_upload/push.py --folder hub_upload/glipv2-nano --repo_id USER/glipv2-nano
    python hub_upload/push.py --folder hub_upload/glipv2-nano --repo_id USER/glipv2-nano --push
    python hub_upload/push.py --folder hub_upload/space --repo_id USER/glipv2 --model USER/glipv2-nano --push

A folder of a model (what `save_pretrained` of the model and the processor wrote) gets the code that runs without this
package, references to it, the licence, and the card `cards/NAME.md` with the numbers of `results/NAME`. A Space gets
the drawing code and the model's name. Without `--push` nothing leaves the machine. Everything that would be uploaded
is scanned: secrets, pickles, absolute paths, code of other repositories, strays and large files are refused. What is
on the Hub already is not sent again; code that is no longer needed is deleted there.

Log in with `hf auth login` first, or set HF_TOKEN.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from folder_checks import check_model, files_of, find_problems
from huggingface_hub import HfApi
from huggingface_hub.repocard import metadata_load, metadata_save
from model_card import make_card

from transformers_glipv2.cli.arguments import InputFolder, ScriptParser, check_paths, positive_float, repo_id
from transformers_glipv2.cli.errors import run
from transformers_glipv2.conversion.remote_code import code_files, save_remote_code
from transformers_glipv2.data.files import write_text
from transformers_glipv2.inference import drawing

HERE = Path(__file__).resolve().parent


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    help = "a saved model with its processor, or the folder of a Space"
    add("--folder", required=True, type=InputFolder, help=help)
    add("--repo_id", required=True, type=repo_id, help="where to publish: USER/NAME or ORGANISATION/NAME")
    add("--push", action="store_true", help="publish; without it, only prepare, check and show")
    add("--private", action="store_true", help="make a new repository private")
    add("--card", help="name of the card in cards/ (default: the folder's name)")
    help = "folder of measured numbers (default: results/CARD beside this script)"
    add("--results", type=InputFolder, help=help)
    add("--model", type=repo_id, help="a Space's model on the Hub (default: what its README says)")
    help = "refuse files of more millions of bytes (default: 5000)"
    add("--max_file_mb", type=positive_float, default=5000, help=help)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> str | None:
    """Returns the address of the commit, or `None` where nothing was sent."""
    args = check_paths(parse_args(arguments))
    is_space = (args.folder / "app.py").is_file()
    with space_folder(args.folder, args.model) if is_space else model_folder(args) as folder:
        problems = find_problems(folder, args.max_file_mb)
        if problems:
            print("\n".join(f"- {problem}" for problem in problems))
            raise ValueError(f"{len(problems)} problems in '{args.folder}', listed above; nothing was sent.")
        for file in files_of(folder):
            print(f"{file.stat().st_size / 1e6:10.3f} MB  {file.relative_to(folder)}")
        if not args.push:
            print(f"Dry run: nothing was sent. Add --push to publish as {args.repo_id}.")
            return None
        return publish(folder, args.repo_id, is_space, args.private)


@contextmanager
def model_folder(args: argparse.Namespace) -> Iterator[Path]:
    """The model's folder, checked and completed in place; what is there already is written the same again."""
    folder = args.folder
    parts = check_model(folder)
    known = {file.name for file in code_files()}
    strays = sorted(file.name for file in folder.glob("*.py") if file.name not in known)
    if strays:
        raise ValueError(f"{', '.join(strays)} in '{folder}' is none of the model's code; take it away.")
    save_remote_code(folder)
    name = args.card or folder.resolve().name
    template = HERE / "cards" / f"{name}.md"
    if not template.is_file():
        cards = ", ".join(sorted(path.stem for path in (HERE / "cards").glob("*.md")))
        raise ValueError(f"There is no card '{template.name}'; write one, or choose with --card: {cards}.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    results = args.results or HERE / "results" / name
    size = processor["image_processor"]["size"]
    card, missing = make_card(template, results, args.repo_id, parts, config, size)
    write_text(folder / "README.md", str(card))
    if card.data.license == "apache-2.0":
        shutil.copyfile(HERE.parent / "LICENSE", folder / "LICENSE")
    elif not (folder / "LICENSE").is_file():
        raise ValueError(f"The card says {card.data.license!r}; put the text of that licence into '{folder}/LICENSE'.")
    for sentence in missing:
        print(f"Not in the card: {sentence}")
    yield folder


@contextmanager
def space_folder(source: Path, model: str | None) -> Iterator[Path]:
    """A copy of the Space with the drawing code, and its model named in the README."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(drawing.__file__, folder / "drawing.py")
        if model is not None:
            metadata = metadata_load(folder / "README.md")
            metadata_save(folder / "README.md", metadata | {"models": [model]})
        yield folder


def publish(folder: Path, repo_id: str, is_space: bool, private: bool) -> str:
    """Makes the repository where there is none, and commits what differs from it."""
    api, repo_type = HfApi(), "space" if is_space else "model"
    sdk = {"space_sdk": "gradio"} if is_space else {}
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **sdk)
    names = {file.relative_to(folder).as_posix() for file in files_of(folder)}
    remote = api.list_repo_files(repo_id, repo_type=repo_type)
    stale = [name for name in remote if name.endswith(".py") and name not in names]
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        repo_type=repo_type,
        commit_message=f"Publish {repo_id.split('/')[-1]}",
        ignore_patterns=["**/__pycache__/**", "__pycache__/**"],
        delete_patterns=stale or None,
    )
    print(f"{repo_id} is at {commit.commit_url}")
    return commit.commit_url


if __name__ == "__main__":
    run(main)
