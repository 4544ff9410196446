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
from pathlib import Path

from transformers_glipv2.cli.arguments import InputFolder, ScriptParser, check_paths, positive_float, repo_id
from transformers_glipv2.cli.errors import run
from transformers_glipv2.hub.publishing import check_folder, is_space, prepare_model, prepared_space, publish

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
    if is_space(args.folder):
        with prepared_space(args.folder, args.model) as folder:
            return check_and_publish(folder, args)
    name = args.card or args.folder.resolve().name
    template = HERE / "cards" / f"{name}.md"
    if not template.is_file():
        cards = ", ".join(sorted(path.stem for path in (HERE / "cards").glob("*.md")))
        raise ValueError(f"There is no card '{template.name}'; write one, or choose with --card: {cards}.")
    for sentence in prepare_model(args.folder, args.repo_id, template, args.results or HERE / "results" / name):
        print(f"Not in the card: {sentence}")
    return check_and_publish(args.folder, args)


def check_and_publish(folder: Path, args: argparse.Namespace) -> str | None:
    print("\n".join(check_folder(folder, args.max_file_mb, args.folder)))
    if not args.push:
        print(f"Dry run: nothing was sent. Add --push to publish as {args.repo_id}.")
        return None
    address = publish(folder, args.repo_id, is_space(folder), args.private)
    print(f"{args.repo_id} is at {address}")
    return address


if __name__ == "__main__":
    run(main)
