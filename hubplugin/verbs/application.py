"""The command line's application, and what several verbs share: their common arguments and options.

Knows no verb: each registers itself here.
"""

from pathlib import Path
from typing import Annotated

import typer

import hubplugin

NAME = "hubplugin"
LOOPBACK = "127.0.0.1"

# Plain help and plain tracebacks: nothing that frames local variables, which may hold a token.
app = typer.Typer(
    name=NAME, help=hubplugin.__doc__, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
)

Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="YAML file: a model and its variants.")]
Variants = Annotated[Path | None, typer.Option(help="Folder of the variants.", show_default="out/<manifest's name>")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Host = Annotated[str, typer.Option(help="Address to listen on; any but loopback lets others reach it.")]
Port = Annotated[int, typer.Option(help="TCP port to listen on.")]
