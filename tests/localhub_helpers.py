"""Official clients for tests: each in its own process with its own home folder, or HfApi in this one."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hubplugin.localhub.server import Running

BIN = Path(sys.executable).parent


def client_env(home: Path, url: str, token: str | None, xet: bool = True) -> dict[str, str]:
    """Environment variables that point an official client to a hub, a token and a home folder."""
    prefixes = ("HF_", "HUGGING", "TRANSFORMERS_")
    kept = {"HF_ASSETS_CACHE"}
    inherited = {name: value for name, value in os.environ.items() if name in kept or not name.startswith(prefixes)}
    return inherited | {
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

def refused(status, error_type, method, *args, **kwargs):
    try:
        method(*args, **kwargs)
    except error_type as error:
        assert error.response.status_code == status, error
        assert error.response.headers["x-error-code"], error
        return error
    raise AssertionError(f"{method.__name__} was not refused")
"""


def client(hub: Running, home: Path, script: str, token: str | None = "", xet: bool = True) -> str:
    """Run a script in a new process; return its stdout. An empty token means that of the hub's first user."""
    env = client_env(home, hub.url, hub.token if token == "" else token, xet)
    process = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(script)],
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr[-6000:]
    return process.stdout


def hf(hub: Running, home: Path, *arguments: str) -> str:
    """Run the `hf` command; return its stdout."""
    process = subprocess.run(
        [BIN / "hf", *arguments],
        env=client_env(home, hub.url, hub.token),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, f"hf {' '.join(arguments)}\n{process.stdout[-3000:]}{process.stderr[-3000:]}"
    return process.stdout


def api_of(hub: Running, token: str | None = None) -> HfApi:
    """The official client in this process, for the hub's first user or another one."""
    return HfApi(hub.url, token=token or hub.token)


def http_of(hub: Running, token: str | None = None) -> httpx.Client:
    """Plain HTTP, for the hub's first user or another one."""
    return httpx.Client(base_url=hub.url, headers={"authorization": f"Bearer {token or hub.token}"}, trust_env=False)


@contextmanager
def refused(status: int, match: str | None = None) -> Iterator[None]:
    """The block ends with this status, in the Hub's format of errors."""
    with pytest.raises(HfHubHTTPError, match=match) as error:
        yield
    response = error.value.response
    assert response is not None and response.status_code == status, error.value
    assert response.headers["x-error-code"] and response.headers["x-error-message"]
