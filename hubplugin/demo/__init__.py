"""`hubplugin demo`: the whole pipeline on this machine, with an embedded Hub and a small model that is included.

Every step is a command that a user would type, printed before it runs. It needs no network. A second run reuses the
results of the first. This module only starts commands; it knows nothing about what they do.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hubplugin import localhub
from hubplugin.errors import HubPluginError, ServeError
from serve import cpu_features

MODEL = Path(__file__).parent / "docs-llama-12m"
MANIFEST = Path(__file__).parents[2] / "manifests" / "demo.yaml"
USER = "local"
SERVED_VARIANT = "Pruned-25-GPTQ-Int4"
DENSE_VARIANT = "Pruned-25"  # on a CPU without AVX-512, where vLLM has no kernel for 4-bit weights
QUESTION = "What does os.path.join do?"


def run(out: Path, written: Path = MANIFEST, *, once: bool) -> int:
    """Run the pipeline on a manifest, then serve until ctrl-C; with `once` end after the chat page has answered.

    `written` must have the two variants that may be served.
    """
    if not written.is_file():
        raise HubPluginError(str(written), "the demo's manifest is missing", "run the demo from a checkout")
    manifest = _relative_path(written)
    with ExitStack() as stack:
        hub = stack.enter_context(localhub.start(out / "hub", user=USER))
        environment = _environment(out, hub)
        _print_step(f"A Hub is running at {hub.url}. Its data is in {out / 'hub'}.")
        base = f"{USER}/{MODEL.name}"
        _run_command(
            environment, "hf", "upload", base, _relative_path(MODEL), "--commit-message", "The demo's base model"
        )
        _print_step("What the manifest would produce. This reads no weights.")
        _run_command(environment, "hubplugin", "plan", manifest)
        _print_step("Pull, calibrate, compress, export, evaluate, gate, write the cards.")
        _run_command(environment, "hubplugin", "run", manifest, "--out", str(out / "variants"))
        _print_step("One commit per variant, and a collection.")
        _run_command(environment, "hubplugin", "publish", manifest, "--out", str(out / "variants"))
        packed = cpu_features.has(cpu_features.AVX512)
        _print_step(f"The pruned{' and quantized' if packed else ''} variant, pulled back from the Hub, on vLLM.")
        served = f"{base}-{SERVED_VARIANT if packed else DENSE_VARIANT}"
        api = stack.enter_context(_server(environment, "hubplugin", "serve", served, "--port", _free_port()))
        page = stack.enter_context(_server(environment, "hubplugin", "chat", api, "--port", _free_port()))
        if once:
            _ask_chat_page(page)
            return 0
        _print_step(f"Chat at {page}   API at {api}   Hub at {hub.url}   ctrl-C ends all of it.\nTry: {QUESTION}")
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


def _ask_chat_page(page: str) -> None:
    """Ask the chat page's backend one question, as a browser would."""
    from serve.chat_page import app

    _print_step(f"Question: {QUESTION}\nAnswer:   {app.ask(page, QUESTION)}")


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
