"""The `glipv2` command: finds the file of a command, runs it, and says in one line what went wrong."""

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from transformers_glipv2.cli import commands
from transformers_glipv2.cli.streams import print_all_characters

NAME = "glipv2"
TRACEBACK = "GLIPV2_TRACEBACK"
# Command -> the extra that its help names; others need what `cli.errors` finds.
EXTRAS = {"evaluate": "eval"}


class CommandGroup(TyperGroup):
    """The commands of `cli/commands`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the files, in order."""
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, which loads the package before it works; `None` where there is no such file."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = get_command(importlib.import_module(f"{commands.__name__}.{cmd_name}").app)
        command.name = cmd_name
        _call_first(command, ctx.find_root().obj)
        return command


def _call_first(command: Any, before: Callable[[], None] | None) -> None:
    """Lets a command, or each of a group, call a function before its own."""
    for sub_command in getattr(command, "commands", {}).values():
        _call_first(sub_command, before)
    if command.callback is None or before is None:
        return
    callback = command.callback

    @wraps(callback)
    def call(*args: Any, **kwargs: Any) -> Any:
        before()
        return callback(*args, **kwargs)

    command.callback = call


app = typer.Typer(
    cls=CommandGroup,
    name=NAME,
    # --image-size is taken as --image_size.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda text: text.replace("-", "_"),
    },
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(version("transformers-glipv2"))
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """
    GLIPv2: detection, grounding, masks, answers and captions from free text.

    `glipv2 COMMAND --help` describes a command; `glipv2 demo` shows one at work.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def run_command(args: Sequence[str], load_package: Callable[[], None] | None = None) -> int:
    """
    Runs a command line.

    Args:
        args (`Sequence[str]`): without the program's name.
        load_package (`Callable`, *optional*): called before a command works, see `glipv2_command`.

    Returns:
        `int`: the exit code. 0: done; 2: something is wrong with what was given, said in one line on stderr; 130:
        interrupted; 1: anything else. The environment variable GLIPV2_TRACEBACK=1 shows where an error comes from.
    """
    print_all_characters()
    try:
        code = get_command(app).main(list(args), prog_name=NAME, standalone_mode=False, obj=load_package)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:  # `glipv2 ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail(args, "interrupted", 130)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        if hasattr(error, "format_message"):  # typer's own, of options and arguments
            own = str(getattr(error, "message", ""))
            message = (own if own.startswith("--") else error.format_message()).rstrip(".")
            return _fail(args, f"error: {message}{_other_spelling(error)}; see `{_command_path(args)} --help`", 2)
        from transformers_glipv2.cli.errors import is_foreseeable, message_of

        if is_foreseeable(error):
            return _fail(args, f"error: {message_of(error, EXTRAS.get(next(iter(args), '')))}", 2)
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return _fail(args, f"unexpected error: {text} (set {TRACEBACK}=1 to see where)", 1)


def _other_spelling(error: Any) -> str:
    """What to write where data or images came by an option instead of without one, or the other way round."""
    context = getattr(error, "ctx", None)
    parameters = context.command.params if context is not None else ()
    given = str(getattr(error, "message", ""))
    if given.startswith("Got unexpected extra argument") and any("--data" in each.opts for each in parameters):
        return "; name the data by --data"
    option = getattr(error, "option_name", "").lstrip("-")
    is_argument = any(each.name == option and each.param_type_name == "argument" for each in parameters)
    return f"; write {option.upper()} without --{option}" if is_argument else ""


def _command_path(args: Sequence[str]) -> str:
    named = args[:1] if args and not args[0].startswith("-") else ()
    known = [name for name in named if name in CommandGroup.list_commands(CommandGroup(), None)]
    return " ".join([NAME, *known])


def _fail(args: Sequence[str], message: str, code: int) -> int:
    sys.stderr.write(f"{_command_path(args)}: {' '.join(message.split())}\n")
    return code
