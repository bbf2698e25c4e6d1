"""The command line: parse, call one function, print. stdout carries results, stderr carries talk.

Turns HubPluginError into three lines and exit code 2. Each verb imports what it needs: `plan` and
`--help` answer without torch.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hubplugin
from hubplugin import interrupt
from hubplugin.errors import HubPluginError
from hubplugin.manifest import loading
from hubplugin.manifest.schema import Document
from hubplugin.plan.draft import Plan

OUT = Path("out")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and exit: 0, or 2 for an error with three lines. Ctrl-C passes through to `__main__`."""
    signal.signal(signal.SIGTERM, _terminated)
    options = _parser().parse_args(argv)
    try:
        status = options.verb(options)
    except HubPluginError as error:
        print(error.lines(), file=sys.stderr)
        status = 2
    except BrokenPipeError:
        sys.stderr.close()
        status = 0
    except (
        OSError
    ) as error:  # a full disk, a folder that may not be written: whatever file it was, the cure is the same
        place, cause = error.filename or "this machine", error.strerror or str(error)
        print(HubPluginError(str(place), cause, "check that it can be written and has room").lines(), file=sys.stderr)
        status = 2
    sys.exit(status)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)  # an exception, so that everything that was started is ended


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hubplugin", description=hubplugin.__doc__)
    parser.add_argument("--version", action="version", version=hubplugin.__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    plan = verbs.add_parser("plan", help="sizes, memory, time and whether vLLM loads it; reads no weights")
    plan.add_argument("manifest", type=Path)
    plan.add_argument("--json", action="store_true", help="print JSON instead of a table")
    plan.set_defaults(verb=_plan)

    run = verbs.add_parser("run", help="pull, calibrate, compress, export, evaluate, gate, write the card")
    run.add_argument("manifest", type=Path)
    run.add_argument("--out", type=Path, help="folder of the variants (out/<manifest's name>)")
    run.set_defaults(verb=_run)

    publish = verbs.add_parser("publish", help="one commit per variant that passed its gate, and a collection")
    publish.add_argument("manifest", type=Path)
    publish.add_argument("--out", type=Path, help="folder of the variants (out/<manifest's name>)")
    publish.set_defaults(verb=_publish)

    serve = verbs.add_parser("serve", help="serve a folder, a repo or a manifest's variant on vLLM")
    serve.add_argument("target", help="a model folder, a repo id, or a manifest (then with --variant)")
    serve.add_argument("--variant", help="which variant of the manifest; the base where left out")
    serve.add_argument("--out", type=Path, help="folder of the variants (out/<manifest's name>)")
    serve.add_argument("--name", help="the model name requests carry (the repo id or the folder's name)")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--max-model-len", type=int, help="tokens of prompt and answer together")
    serve.set_defaults(verb=_serve)

    chat = verbs.add_parser("chat", help="a chat page over any OpenAI-compatible URL")
    chat.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    chat.add_argument("--model", help="which model of the endpoint (its first)")
    chat.add_argument("--host", default="127.0.0.1")
    chat.add_argument("--port", type=int, default=7860)
    chat.set_defaults(verb=_chat)

    hub = verbs.add_parser("hub", help="a small Hub on this machine")
    hub.add_argument("--root", type=Path, required=True, help="folder of everything it stores")
    hub.add_argument("--host", default="127.0.0.1")
    hub.add_argument("--port", type=int, default=8765)
    hub.set_defaults(verb=_hub)

    demo = verbs.add_parser("demo", help="the whole way on this machine, with a model that comes along")
    demo.add_argument("--once", action="store_true", help="end after the chat page has answered once")
    demo.add_argument("--out", type=Path, default=OUT / "demo")
    demo.set_defaults(verb=_demo)
    return parser


def _out(options: argparse.Namespace, path: Path) -> Path:
    return options.out or OUT / path.stem


def _plan(options: argparse.Namespace) -> int:
    with interrupt.held():
        from hubplugin import memory
        from hubplugin.plan import draft, table

    made = _planned(loading.load(options.manifest))
    # planning takes little of what a run has: what is free now is what it will find
    print(json.dumps(draft.as_json(made), indent=1) if options.json else table.render(made, memory.available()))
    return 0


def _planned(document: Document) -> Plan:
    """From config.json and safetensors headers alone, remote or local."""
    with interrupt.held():
        from hubplugin.hub import snapshots
        from hubplugin.plan import planner

    peek = snapshots.peek(document.manifest.model, document.folder)
    return planner.make(document, peek.config, peek.tensors, revision=peek.sha)


def _run(options: argparse.Namespace) -> int:
    document = loading.load(options.manifest)
    planned = _planned(document)  # whatever the manifest gets wrong is said before torch is loaded
    # idle threads that spin make small operations 100 times slower on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with interrupt.held():
        from hubplugin import pipeline
        from hubplugin.evaluation import generate

    out = _out(options, options.manifest)
    pipeline.run(document, planned, out, generate.greedy)
    for name in document.manifest.variants:
        print(out / name)
    return 0


def _publish(options: argparse.Namespace) -> int:
    with interrupt.held():
        from hubplugin.hub import publish

    document = loading.load(options.manifest)
    for pushed in publish.publish(document, _out(options, options.manifest)):
        print(pushed.url)
    return 0


def _serve(options: argparse.Namespace) -> int:
    with interrupt.held():
        from hubplugin.hub import resolve
        from hubplugin.progress import progress
        from serve import engine

    folder, name = resolve.find(options.target, options.variant, options.out)
    return engine.run_forever(
        folder,
        name=options.name or name,
        ready=lambda running: print(f"{running.url}/v1", flush=True),
        host=options.host,
        port=options.port,
        max_model_len=options.max_model_len,
        on_progress=progress,
    )


def _chat(options: argparse.Namespace) -> int:
    with interrupt.held():
        from serve import app

    return app.run_forever(
        options.url,
        ready=lambda page: print(page.url, flush=True),
        model=options.model,
        host=options.host,
        port=options.port,
        api_key=os.environ.get("VLLM_API_KEY"),
    )


def _hub(options: argparse.Namespace) -> int:
    with interrupt.held():
        from hubplugin import localhub

    localhub.serve(options.root, host=options.host, port=options.port)
    return 0


def _demo(options: argparse.Namespace) -> int:
    with interrupt.held():
        from hubplugin import demo

    return demo.run(options.out, once=options.once)
