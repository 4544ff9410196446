"""
The commands of `glipv2`: one file a command, found by its name.

A file defines `app`, made by [`transformers_glipv2.cli.options.command_app`], with one function that is a command, or
several for a group such as `data`. It imports typer and `cli.options` at its top, and everything else inside the
function: whatever is imported at the top delays `glipv2 --help`, and the package's `__init__` has not run by then.
"""
