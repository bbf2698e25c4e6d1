"""The verb that makes hubplugin a command of the official `hf`."""

from typing import Annotated

import typer

from hubplugin import interrupt
from hubplugin.progress import progress
from hubplugin.verbs.application import app


@app.command("register-cli")
def _register_cli(
    remove: Annotated[bool, typer.Option("--remove", help="Take the command away again.")] = False,
) -> None:
    """Make `hf compress ...` run `hubplugin ...`, as an extension of the official `hf`.

    Prints the file that was written, or the folder that was removed. An extension of others is never touched.

    Example: hubplugin register-cli
    """
    with interrupt.held():
        from hubplugin.hub import extension

    command = f"hf {extension.COMMAND}"
    if not remove:
        written, program = extension.register()
        print(written)
        progress(f"{command} runs {program}")
    elif removed := extension.remove():
        print(removed)
        progress(f"{command} is removed")
    else:
        progress(f"{command} was not registered")
