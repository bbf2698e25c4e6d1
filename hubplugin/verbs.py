"""The verbs: each parses its options, calls one function and prints what came of it.

A verb imports what it needs, when it needs it: `--help` answers without torch. Knows nothing of how things are done.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import hubplugin
from hubplugin import interrupt, progress

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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Host = Annotated[str, typer.Option(help="Address to listen on; any but loopback lets others reach it.")]
Port = Annotated[int, typer.Option(help="TCP port to listen on.")]


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
def _plan(manifest: Manifest, as_json: AsJson = False) -> None:
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
    """From config.json, card and safetensors headers alone, remote or local.

    What publishing would refuse, and what transformers would refuse to build, is said before any work.
    """
    with interrupt.held():
        from hubplugin.hub import publish, snapshots
        from hubplugin.plan import planner

    peek = snapshots.peek(document.manifest.model, document.folder)
    planned = planner.make(document, peek.config, peek.tensors, revision=peek.sha)
    notes = publish.preflight(document, peek)  # like all that needs no torch, before it is loaded
    _let_idle_threads_sleep()
    with interrupt.held():
        from hubplugin.model.construction import buildable

    buildable.check(planned.config, planned.family, f"{document.manifest.model}: config.json")
    return replace(planned, notes=(*planned.notes, *notes))


@app.command("run")
def _run(
    manifest: Manifest,
    out: Variants = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Make only this variant; may be repeated.", show_default="all")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The base's commit, branch or tag.", show_default="as the manifest says")
    ] = None,
) -> None:
    """Pull, calibrate, compress, export, evaluate, gate, write cards.

    Prints the folder of each variant. Started again, it goes on where it was interrupted.

    Example: hubplugin run manifests/demo.yaml --out out/demo
    """
    with interrupt.held():
        from hubplugin.manifest.reading.narrowing import narrowed

    _on_variants(
        manifest,
        out,
        lambda pipeline, *given: pipeline.run(*given),
        lambda document: narrowed(document, only or (), revision),
    )


@app.command("gate")
def _gate(manifest: Manifest, out: Variants = None) -> None:
    """Check finished variants again, and write their reports and cards.

    Everything that holds of a finished folder is checked anew, by the manifest's present thresholds.
    Compresses nothing.

    Example: hubplugin gate manifests/demo.yaml
    """
    _on_variants(manifest, out, lambda pipeline, *given: pipeline.judge(*given, thorough=True))


@app.command("card")
def _card(manifest: Manifest, out: Variants = None) -> None:
    """Write reports and cards of finished variants anew, after an edit.

    Of the gate only the thresholds are looked at again, and measured is only what the manifest measures otherwise than
    before. Compresses nothing.

    Example: hubplugin card manifests/demo.yaml
    """
    _on_variants(manifest, out, lambda pipeline, *given: pipeline.judge(*given, thorough=False))


def _on_variants(
    manifest: Path,
    out: Path | None,
    work: Callable[..., object],
    narrow: "Callable[[Document], Document]" = lambda document: document,
) -> None:
    """Plan, have the pipeline do its work, and print the folder of each variant."""
    with interrupt.held():
        from hubplugin.manifest.reading import loading

    document = narrow(loading.load(manifest))
    planned = _planned(document)  # whatever the manifest gets wrong is said before the pipeline is loaded
    with interrupt.held():
        from hubplugin import pipeline
        from hubplugin.evaluation import engine_choice

    folder = out or OUT / manifest.stem
    work(pipeline, document, planned, folder, engine_choice.generate, engine_choice.take_turn)
    for name in document.manifest.variants:
        print(folder / name)


def _let_idle_threads_sleep() -> None:
    """For OpenMP, here and in what is started, before it loads: idle threads that spin slow busy machines 100 times."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@app.command("publish")
def _publish(
    manifest: Manifest,
    out: Variants = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite what others have changed in the repos since our last commit.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="List what would be sent, and change nothing on the Hub.")
    ] = False,
) -> None:
    """One commit per variant that passed its gate, and a collection.

    What others changed in a repo since our last commit is shown, and stays. Prints the URL of each; of a dry run one
    line per file: repo, what becomes of it, bytes to send, path. The Hub's token is taken from HF_TOKEN, or as `hf auth
    login` left it.

    Example: hubplugin publish manifests/demo.yaml
    """
    with interrupt.held():
        from hubplugin.hub import publish
        from hubplugin.manifest.reading import loading

    document, folder = loading.load(manifest), out or OUT / manifest.stem
    if dry:
        for line in publish.dry_run(document, folder, force):
            print(line)
        return
    for pushed in publish.publish(document, folder, force):
        print(pushed.url)


@app.command("verify")
def _verify(
    target: Annotated[str, typer.Argument(metavar="REPO|FOLDER", help="A published model, anybody's.")],
    base: Annotated[str | None, typer.Option(help="Repo or folder of its base, in place of what it names.")] = None,
    quality: Annotated[bool, typer.Option("--quality", help="Measure perplexity, KL and the rest again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check what card, report and configuration claim against the tensors; ends with 1 where a claim is false.

    Example: hubplugin verify out/demo/GPTQ-Int8
    """
    _let_idle_threads_sleep()
    with interrupt.held():
        from hubplugin import verification

    found = verification.verify(target, base, {verification.QUALITY} if quality else ())
    print(found.json_text() if as_json else found.text())
    raise typer.Exit(int(not found.holds))


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
        str, typer.Argument(metavar="URL", help="An OpenAI-compatible server, a path is kept, a bare host gets /v1.")
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
        from serve.chat_page import app as page

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
