"""Fixtures every test may use: pico models, and a user directory of its own so that no test sees the real one."""

import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import pico
import pytest
import torch

from serve import forking

if TYPE_CHECKING:
    import httpx
    from huggingface_hub import HfApi

    from hubplugin.localhub.server import Running

# before anything imports huggingface_hub, which reads them once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.pop("HF_TOKEN", None)
# by both workers and every process they start; `hubplugin plan` notes there which models it has seen built
ASSETS = Path(tempfile.gettempdir()) / f"hubplugin-tests-{os.getuid()}"
os.environ.setdefault("HF_ASSETS_CACHE", str(ASSETS))

VLLM = filelock.FileLock(Path(tempfile.gettempdir()) / f"hubplugin-vllm-{os.getuid()}.lock")

# a shell that starts something in the background has it ignore ctrl-C, and so would every process that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `gpu` needs a device. Files with slow tests come first, and those that start the real vLLM stand
    between others: two workers then end at about one time, and seldom wait for each other."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    serve = {item.path for item in items if item.get_closest_marker("serve")}
    files = sorted(dict.fromkeys(item.path for item in items), key=lambda path: path not in slow)
    starting, others = [path for path in files if path in serve], [path for path in files if path not in serve]
    order = [path for pair in zip_longest(starting, others) for path in pair if path]
    places = {path: place for place, path in enumerate(order)}
    items.sort(key=lambda item: places[item.path])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, bool, bool]:
    """One worker at a time starts vLLM. It waits before a test's time begins, and goes on with its file."""
    if item.get_closest_marker("serve"):
        VLLM.acquire()
    try:
        return (yield)
    finally:
        goes_on = nextitem and nextitem.path == item.path and nextitem.get_closest_marker("serve")
        if VLLM.is_locked and not goes_on:
            VLLM.release(force=True)


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory):
    """Caches and logins go to a throw-away HF_HOME."""
    os.environ.setdefault("HF_HOME", str(tmp_path_factory.mktemp("hf-home")))


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    """Pico matrices are faster on one thread, and tests run beside each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where tests start the real vLLM, it is imported once for all that start it from this process."""
    with forking.kept() if any(item.get_closest_marker("serve") for item in request.session.items) else nullcontext():
        yield


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico Llama on disk. Read-only: copy it before changing it."""
    return pico.write(tmp_path_factory.mktemp("models") / "pico-llama")


@pytest.fixture
def hub(tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["HfApi"]:
    """An embedded Hub that holds local/pico, and an environment that points at it."""
    from huggingface_hub import HfApi

    from hubplugin import localhub

    with localhub.start(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
        api = HfApi(running.url, token=running.token)
        api.create_repo("local/pico")
        api.upload_folder(repo_id="local/pico", folder_path=pico_folder)
        yield api


@pytest.fixture
def api(hub: "Running") -> "HfApi":
    """The official client of the hub that a test file runs, with its first user's token."""
    from localhub_helpers import api_of

    return api_of(hub)


@pytest.fixture
def http(hub: "Running") -> Iterator["httpx.Client"]:
    """Plain requests to the hub that a test file runs, with its first user's token."""
    from localhub_helpers import http_of

    with http_of(hub) as session:
        yield session


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
