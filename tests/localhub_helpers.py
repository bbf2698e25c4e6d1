"""A running hub for tests, and official clients that talk to it from processes and homes of their own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from hubplugin.localhub.server import Running

BIN = Path(sys.executable).parent


def client_env(home: Path, url: str, token: str | None, xet: bool = True) -> dict[str, str]:
    """An environment in which official clients know one hub, one token and an empty home."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    return kept | {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": url,
        "HF_TOKEN": token or "",
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0" if token else "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "NO_COLOR": "1",
    }


PREAMBLE = """
import hashlib, io, json, os, struct, sys
from pathlib import Path
from huggingface_hub import *
from huggingface_hub.errors import *
api = HfApi()

def refused(status, kind, call, *args, **more):
    try:
        call(*args, **more)
    except kind as error:
        assert error.response.status_code == status, error
        assert error.response.headers["x-error-code"], error
        return error
    raise AssertionError(f"{call.__name__} was not refused")
"""


def client(hub: Running, home: Path, script: str, token: str | None = "", xet: bool = True) -> str:
    """Run a script in a process of its own, as the hub's own user unless a token is given; what it printed."""
    env = client_env(home, hub.url, hub.token if token == "" else token, xet)
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(script)],
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


def hf(hub: Running, home: Path, *words: str) -> str:
    """Run the `hf` command; its stdout."""
    done = subprocess.run(
        [BIN / "hf", *words],
        env=client_env(home, hub.url, hub.token),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"hf {' '.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout
