"""From a folder that `save_pretrained` wrote, or a Space, to a repository on the Hub."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.repocard import metadata_load, metadata_save

from transformers_glipv2.conversion.remote_code import code_files, save_remote_code
from transformers_glipv2.data.files import write_text
from transformers_glipv2.hub.folder_checks import IGNORED, check_model, files_of, find_problems
from transformers_glipv2.hub.model_card import make_card
from transformers_glipv2.inference import drawing

# The card of a model that brings none.
PLAIN_CARD = Path(__file__).with_name("card.md")


def is_space(folder: Path) -> bool:
    """Whether a folder is a Space rather than a model."""
    return (folder / "app.py").is_file()


def prepare_model(
    folder: Path, repo_id: str, template: Path | None = None, results: Path | None = None, license: str | None = None
) -> list[str]:
    """
    Checks a model's folder and completes it in place: code, a card, the licence. What is there already is written the
    same again; a README.md with metadata is kept where no template is given.

    Args:
        folder (`Path`): of `save_pretrained` of the model and the processor.
        repo_id (`str`): where it will be published.
        template (`Path`, *optional*): of the card, see `model_card`.
        results (`Path`, *optional*): folder of measured numbers for the template.
        license (`str`, *optional*): identifier for a new card, such as "apache-2.0".

    Returns:
        `list[str]`: sentences about what the card does not say.

    Raises:
        FileNotFoundError, ValueError: for what is no whole GLIPv2, for code of others in the folder, and for a licence
            without its text.
    """
    parts = check_model(folder)
    known = {file.name for file in code_files()}
    strays = sorted(file.name for file in folder.glob("*.py") if file.name not in known)
    if strays:
        raise ValueError(f"{', '.join(strays)} in '{folder}' is none of the model's code; take it away.")
    save_remote_code(folder)
    readme = folder / "README.md"
    metadata = metadata_load(readme) if readme.is_file() else None
    notes: list[str] = []
    if template is not None or not metadata:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        size = processor["image_processor"]["size"]
        fields = {} if license is None else {"license": license}
        results = results or folder
        card, notes = make_card(template or PLAIN_CARD, results, repo_id, parts, config, size, **fields)
        write_text(readme, str(card))
        metadata = card.data.to_dict()
    _add_license(folder, metadata.get("license"))
    if not metadata.get("license"):
        notes.append("a licence; people may not use what has none. Name one with --license or in README.md.")
    return notes


def _add_license(folder: Path, name: str | None) -> None:
    """Apache-2.0 has the text of this package; others are to be there already."""
    file = folder / "LICENSE"
    if name == "apache-2.0":
        write_text(file, license_text())
    elif name and name != "other" and not file.is_file():
        raise ValueError(f"The card says {name!r}; put the text of that licence into '{file}'.")


def license_text() -> str:
    """Apache-2.0, as this package has it."""
    for file in distribution("transformers-glipv2").files or ():
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    raise FileNotFoundError("the installed package has no LICENSE; install transformers-glipv2 again.")


@contextmanager
def prepared_space(source: Path, model: str | None) -> Iterator[Path]:
    """A copy of a Space with the drawing code, and its model (USER/NAME) named in the README."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(drawing.__file__, folder / "drawing.py")
        if model is not None:
            metadata = metadata_load(folder / "README.md") or {}
            metadata_save(folder / "README.md", metadata | {"models": [model]})
        yield folder


def check_folder(folder: Path, max_file_mb: float, shown: Path) -> list[str]:
    """
    What would be uploaded, after a search for everything that must not be.

    Args:
        folder (`Path`): with what is to be uploaded.
        max_file_mb (`float`): size of a file at most, in millions of bytes.
        shown (`Path`): what errors call the folder.

    Returns:
        `list[str]`: a line for each file.

    Raises:
        ValueError: with all problems.
    """
    problems = find_problems(folder, max_file_mb)
    if problems:
        listed = " ".join(f"- {problem}" for problem in problems)
        raise ValueError(f"{len(problems)} problems in '{shown}', nothing was sent: {listed}")
    return [f"{file.stat().st_size / 1e6:10.3f} MB  {file.relative_to(folder)}" for file in files_of(folder)]


def publish(folder: Path, repo_id: str, space: bool = False, private: bool = False) -> str:
    """
    Makes the repository where there is none, and commits what differs from it; code that is no longer needed is
    deleted there.

    Returns:
        `str`: the address of the commit.
    """
    api, repo_type = HfApi(), "space" if space else "model"
    sdk = "gradio" if space else None
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
    names = {file.relative_to(folder).as_posix() for file in files_of(folder)}
    remote = api.list_repo_files(repo_id, repo_type=repo_type)
    stale = [name for name in remote if name.endswith(".py") and name not in names]
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        repo_type=repo_type,
        commit_message=f"Publish {repo_id.split('/')[-1]}",
        ignore_patterns=[pattern for name in IGNORED for pattern in (f"**/{name}/**", f"{name}/**", name)],
        delete_patterns=stale or None,
    )
    return commit.commit_url
