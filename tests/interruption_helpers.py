"""Runs that are stopped by an exception or killed, and run again: they must end in the bytes of an undisturbed run."""

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hubplugin.recovery import block_training, distillation, student_folder
from hubplugin.report import Recovery

KILLS = 6
# a function of training, and how often it returns before it stops everything
STOPS = [
    (block_training, "_train", 1),
    (block_training, "_loss", 3),
    (distillation.Distillation, "_learn", 0),
    (distillation.Distillation, "_learn", 4),
    (distillation.Distillation, "_judge", 5),
    (student_folder, "write", 0),
]


class _Stop(BaseException):
    pass


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, those below it left out."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def stop_after(calls: int, place: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function raise once it was called so often."""
    original, made = getattr(place, name), []

    def counted(*given: Any, **named: Any) -> Any:
        if len(made) == calls:
            raise _Stop
        made.append(None)
        return original(*given, **named)

    monkeypatch.setattr(place, name, counted)


@contextmanager
def stopped(calls: int, place: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What happens within is stopped by the call after so many of a function, or the test fails."""
    with monkeypatch.context() as patched, pytest.raises(_Stop):
        stop_after(calls, place, name, patched)
        yield


def check_stopped(
    run: Callable[[Path], Recovery], folder: Path, stop: tuple[Any, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training of eight steps that gains something, stopped and run again, writes and says what a whole one does."""
    whole = run(folder / "whole")
    assert whole.steps == 8 and whole.kl_after < whole.kl_before
    place, name, calls = stop
    with stopped(calls, place, name, monkeypatch):
        run(folder / "out")
    again = run(folder / "out")
    assert contents(folder / "out") == contents(folder / "whole")
    assert again.model_copy(update={"seconds": whole.seconds}) == whole


def check_killed(run: Callable[..., Any], given: tuple[Path, ...], folder: Path) -> None:
    """`run`, a function of a module, killed at any moments and run again, writes the same bytes.

    It is called with what is given and an output folder.
    """
    begun = time.monotonic()
    run(*given, folder / "whole")
    took = time.monotonic() - begun
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["hubplugin.recovery.recover"])
    chance, kills = random.Random(5), 0
    while kills < KILLS:
        shutil.rmtree(folder / "out", ignore_errors=True)
        for _ in range(3):
            ready = processes.Event()
            worker = processes.Process(target=_run_when_ready, args=(ready, run, given, folder / "out"))
            worker.start()
            assert ready.wait(60)
            time.sleep(chance.uniform(0, took))
            worker.kill()
            worker.join()
            kills += worker.exitcode == -signal.SIGKILL
        run(*given, folder / "out")
        assert contents(folder / "out") == contents(folder / "whole")


def _run_when_ready(ready: Any, run: Callable[..., Any], given: tuple[Path, ...], out: Path) -> None:
    torch.set_num_threads(1)
    ready.set()
    run(*given, out)
