"""The verbs: each parses its options, calls one function and prints what came of it.

A verb imports what it needs, when it needs it: `--help` answers without torch. Knows nothing of how things are done.
"""

import sys
from typing import Annotated

import typer

import hubplugin
from hubplugin import progress
from hubplugin.verbs import compressing, publishing, registering, serving, showing
from hubplugin.verbs.application import NAME, app

__all__ = ["NAME", "app", "compressing", "publishing", "registering", "serving", "showing"]


def _version(asked: bool) -> None:
    if asked:
        print(hubplugin.__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help=f"Only errors on stderr, no progress; {progress.QUIET}=1 does the same."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if quiet or progress.quiet():
        progress.silence()
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)
