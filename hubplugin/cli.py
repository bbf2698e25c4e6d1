"""The command line: parse, run a verb, and say in three lines what went wrong. stdout has results, stderr has talk.

Turns HubPluginError, OSError and mistakes in the command itself into three lines and exit code 2. Knows no verb.
"""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import typer

from hubplugin.errors import HubPluginError
from hubplugin.verbs import NAME, app

PASSED_ON = "--"  # what stands behind it is not ours
FOR_ENGINES = "serve"  # the verb whose engines get it


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and exit: 0, or 2 for an error with three lines. Ctrl-C passes through to `__main__`."""
    signal.signal(signal.SIGTERM, _terminated)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run_verb(words)
        sys.stdout.flush()
    except HubPluginError as error:
        status = _failed(error)
    except typer.TyperException as error:
        status = _failed(_usage_error(error, words))
    except BrokenPipeError:
        _discard_output()
        status = 0
    except OSError as error:
        # a full disk, a folder that may not be written: whatever file it was, the cure is the same
        place, cause = error.filename or "this machine", error.strerror or str(error)
        status = _failed(HubPluginError(str(place), cause, "check that it can be written and has room"))
    sys.exit(status)


def _run_verb(words: list[str]) -> int:
    """The exit code. Not by `app()`, which ends the process itself: by 1 for a closed pipe, and with its own errors."""
    command = typer.main.get_command(app)
    behind: list[str] = []
    if PASSED_ON in words and FOR_ENGINES in words[: words.index(PASSED_ON)]:
        words, behind = words[: words.index(PASSED_ON)], words[words.index(PASSED_ON) + 1 :]
    try:
        with command.make_context(NAME, [*words], obj=behind) as context:  # parsing empties the list
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def _failed(error: HubPluginError) -> int:
    print(error.lines(), file=sys.stderr)
    return 2


def _discard_output() -> None:
    """Whoever read it has seen enough, and the interpreter's last flush must not fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _usage_error(error: typer.TyperException, words: list[str]) -> HubPluginError:
    """An unknown option, a missing argument: where is the command, and its help says how it is called."""
    if (context := getattr(error, "ctx", None)) is not None:
        command = context.command_path
    else:  # an option without its value comes without a context
        command = " ".join([NAME, *(word for word in words[:1] if not word.startswith("-"))])
    return HubPluginError(command, " ".join(error.format_message().split()), f"see {command} --help")


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)  # an exception, so that everything that was started is ended
