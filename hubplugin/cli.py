"""The command line: parse, call one function, print. stdout carries results, stderr carries talk.

Turns HubPluginError, OSError and mistakes in the command itself into three lines and exit code 2. Each verb imports
what it needs: `plan` and `--help` answer without torch. It knows nothing about how any of it is done.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

import hubplugin
from hubplugin import interrupt, progress
from hubplugin.errors import HubPluginError

if TYPE_CHECKING:
    from hubplugin.manifest.schema import Document
    from hubplugin.plan.draft import Plan

NAME = "hubplugin"
OUT = Path("out")
LOOPBACK = "127.0.0.1"

# Plain help and plain tracebacks: nothing that frames local variables, which may hold a token.
app = typer.Typer(
    name=NAME, help=hubplugin.__doc__, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
)

Manifest = Annotated[Path, typer.Argument(metavar="MANIFEST", help="YAML file: a model and its variants.")]
Variants = Annotated[Path | None, typer.Option(help="Folder of the variants.", show_default="out/<manifest's name>")]
Host = Annotated[str, typer.Option(help="Address to listen on; any but loopback lets others reach it.")]
Port = Annotated[int, typer.Option(help="TCP port to listen on.")]


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
    try:
        with command.make_context(NAME, [*words]) as context:  # parsing empties the list
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


@app.command("plan")
def _plan(
    manifest: Manifest, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
) -> None:
    """Sizes, memory, time and whether vLLM loads it; reads no weights.

    Example: hubplugin plan manifests/demo.yaml
    """
    with interrupt.held():
        from hubplugin import memory
        from hubplugin.manifest.reading import loading
        from hubplugin.plan import draft, table

    planned = _planned(loading.load(manifest))
    # planning takes little of what a run has: what is free now is what it will find
    print(json.dumps(draft.as_json(planned), indent=1) if as_json else table.render(planned, memory.available()))


def _planned(document: "Document") -> "Plan":
    """From config.json and safetensors headers alone, remote or local."""
    with interrupt.held():
        from hubplugin.hub import snapshots
        from hubplugin.plan import planner

    peek = snapshots.peek(document.manifest.model, document.folder)
    return planner.make(document, peek.config, peek.tensors, revision=peek.sha)


@app.command("run")
def _run(manifest: Manifest, out: Variants = None) -> None:
    """Pull, calibrate, compress, export, evaluate, gate, write cards.

    Prints the folder of each variant. Started again, it goes on where it was interrupted.

    Example: hubplugin run manifests/demo.yaml --out out/demo
    """
    _let_idle_threads_sleep()
    with interrupt.held():
        from hubplugin.manifest.reading import loading

    document = loading.load(manifest)
    planned = _planned(document)  # whatever the manifest gets wrong is said before torch is loaded
    with interrupt.held():
        from hubplugin import pipeline
        from hubplugin.evaluation import engine_choice

    folder = out or OUT / manifest.stem
    pipeline.run(document, planned, folder, engine_choice.generate)
    for name in document.manifest.variants:
        print(folder / name)


def _let_idle_threads_sleep() -> None:
    """For OpenMP in torch and in processes started from here, which read it as they load.

    Idle threads that spin make small operations 100 times slower on a busy machine.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@app.command("publish")
def _publish(manifest: Manifest, out: Variants = None) -> None:
    """One commit per variant that passed its gate, and a collection.

    Prints the URL of each. The Hub's token is taken from HF_TOKEN, or as `hf auth login` left it.

    Example: hubplugin publish manifests/demo.yaml
    """
    with interrupt.held():
        from hubplugin.hub import publish
        from hubplugin.manifest.reading import loading

    for pushed in publish.publish(loading.load(manifest), out or OUT / manifest.stem):
        print(pushed.url)


@app.command("serve")
def _serve(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A model's folder, a repo id, or a manifest.")],
    variant: Annotated[
        str | None, typer.Option(help="Which variant of the manifest.", show_default="the uncompressed model")
    ] = None,
    out: Variants = None,
    name: Annotated[
        str | None, typer.Option(help="Model name that requests carry.", show_default="repo id or folder's name")
    ] = None,
    host: Host = LOOPBACK,
    port: Port = 8000,
    max_model_len: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and answer together.", show_default="the model's own; 4096 on a CPU"),
    ] = None,
) -> None:
    """Serve a folder, a repo or a manifest's variant on vLLM.

    Prints the URL once it answers, and ends by ctrl-C. With VLLM_API_KEY in the environment requests must carry it.

    Example: hubplugin serve manifests/demo.yaml --variant GPTQ-Int8 --port 8001
    """
    with interrupt.held():
        from hubplugin.hub import resolve
        from serve import engine

    folder, known_as = resolve.find(target, variant, out)
    raise typer.Exit(
        engine.run_forever(
            folder,
            name=name or known_as,
            ready=lambda running: print(f"{running.url}/v1", flush=True),
            host=host,
            port=port,
            max_model_len=max_model_len,
            on_progress=progress.progress,
        )
    )


@app.command("chat")
def _chat(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="An OpenAI-compatible server, with or without /v1.")
    ] = f"http://{LOOPBACK}:8000",
    model: Annotated[str | None, typer.Option(help="Which of the server's models.", show_default="its first")] = None,
    host: Host = LOOPBACK,
    port: Port = 7860,
) -> None:
    """A chat page over any OpenAI-compatible URL.

    Prints the page's URL, and ends by ctrl-C. The server's key, where it wants one, is taken from VLLM_API_KEY.

    Example: hubplugin chat http://127.0.0.1:8001
    """
    with interrupt.held():
        from serve import app as page

    raise typer.Exit(
        page.run_forever(
            url,
            ready=lambda running: print(running.url, flush=True),
            model=model,
            host=host,
            port=port,
            api_key=os.environ.get("VLLM_API_KEY"),
        )
    )


@app.command("hub")
def _hub(
    root: Annotated[Path, typer.Option(help="Folder of everything it stores.")],
    host: Host = LOOPBACK,
    port: Port = 8765,
) -> None:
    """A small Hub on this machine.

    Ends by ctrl-C. Its token is in the file `token` under its root.

    Example: hubplugin hub --root out/hub
    """
    with interrupt.held():
        from hubplugin import localhub

    localhub.serve(root, host=host, port=port)


@app.command("demo")
def _demo(
    once: Annotated[bool, typer.Option("--once", help="End after the chat page has answered once.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of everything it writes.")] = OUT / "demo",
) -> None:
    """The whole way on this machine, with a model that comes along.

    Example: hubplugin demo --once
    """
    with interrupt.held():
        from hubplugin import demo

    raise typer.Exit(demo.run(out, once=once))
