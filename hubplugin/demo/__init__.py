"""The whole way on this machine: an embedded Hub, a model that comes along, and the same commands a user would type.

Every step is a command in a process of its own, printed before it runs. Needs no network. A second run finds what the
first one made.
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

MODEL = Path(__file__).parent / "docs-llama-12m"
MANIFEST = Path(__file__).parents[2] / "manifests" / "demo.yaml"
USER = "local"
SERVED = "Pruned-25-GPTQ-Int4"
QUESTION = "What does os.path.join do?"


def run(out: Path, once: bool) -> int:
    """Walk the way; then stay up until ctrl-C, or with `once` end after the chat page has answered a question."""
    if not MANIFEST.is_file():
        raise HubPluginError(str(MANIFEST), "the demo's manifest is missing", "run the demo from a checkout")
    manifest = _short(MANIFEST)
    with ExitStack() as stack:
        hub = stack.enter_context(localhub.start(out / "hub", user=USER))
        environment = _environment(out, hub)
        _say(f"A Hub is running at {hub.url}; it stores under {out / 'hub'}.")
        base = f"{USER}/{MODEL.name}"
        _do(environment, "hf", "upload", base, _short(MODEL), "--commit-message", "The demo's base model")
        _say("What would the manifest make? No weight is read for this.")
        _do(environment, "hubplugin", "plan", manifest)
        _say("Pull, calibrate, compress, export, evaluate, gate, write the cards.")
        _do(environment, "hubplugin", "run", manifest, "--out", str(out / "variants"))
        _say("One commit per variant, and a collection.")
        _do(environment, "hubplugin", "publish", manifest, "--out", str(out / "variants"))
        _say("The pruned and quantized variant, pulled back from the Hub, on vLLM.")
        served = f"{base}-{SERVED}"
        api = stack.enter_context(_running(environment, "hubplugin", "serve", served, "--port", _free_port()))
        page = stack.enter_context(_running(environment, "hubplugin", "chat", api, "--port", _free_port()))
        if once:
            _ask(page)
            return 0
        _say(f"Chat at {page}   API at {api}   Hub at {hub.url}   ctrl-C ends all of it.\nTry: {QUESTION}")
        _wait()
    return 0


def _environment(out: Path, hub: localhub.Running) -> dict[str, str]:
    """What the official clients read: the embedded Hub, its token, and a cache of the demo's own."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HOME": str((out / "hf-home").resolve()),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def _command(words: tuple[str, ...]) -> list[str]:
    """`hubplugin` and `hf` as installed beside this Python, whether or not they are on PATH."""
    print(f"\n$ {shlex.join(words)}", flush=True)
    if words[0] == "hubplugin":
        return [sys.executable, "-m", "hubplugin", *words[1:]]
    return [str(Path(sys.executable).parent / words[0]), *words[1:]]


def _do(environment: dict[str, str], *words: str) -> None:
    status = subprocess.run(_command(words), env=environment, check=False).returncode
    if status in (130, -2):
        raise KeyboardInterrupt
    if status:
        raise HubPluginError(shlex.join(words), f"ended with status {status}", "its own message stands above")


@contextmanager
def _running(environment: dict[str, str], *words: str) -> Iterator[str]:
    """A command that stays up; yields the URL it prints first. It is ended with the block."""
    process = subprocess.Popen(_command(words), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            status = process.wait()
            raise ServeError(shlex.join(words), f"ended with status {status}", "its own message stands above")
        print(url, flush=True)
        yield url
    finally:
        process.terminate()
        process.wait()


def _ask(page: str) -> None:
    """One question through the chat page's own backend, as the page in a browser would ask it."""
    from serve import app

    _say(f"Question: {QUESTION}\nAnswer:   {app.ask(page, QUESTION)}")


def _free_port() -> str:
    from serve import ports

    return str(ports.choose(ports.LOOPBACK, None))


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _wait() -> None:
    from threading import Event

    Event().wait()
