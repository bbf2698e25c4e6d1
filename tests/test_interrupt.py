"""Ctrl-C that Python drops where it comes ends a run all the same, once."""

import contextlib
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from hubplugin import interrupt, pipeline, progress

DROPPED = "ignore::pytest.PytestUnraisableExceptionWarning"


class Gone:
    """What is interrupted where nothing raised is heard: as it goes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings(DROPPED)
def test_what_was_dropped_is_raised_at_the_next_line_of_progress() -> None:
    with pytest.raises(KeyboardInterrupt), interrupt.remembered():
        del [Gone()][0]
        progress.progress("a block")


@pytest.mark.filterwarnings(DROPPED)
def test_a_run_whose_interrupt_was_dropped_ends_at_its_next_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(*_: Any) -> None:
        del [Gone()][0]
        progress.progress("a block")
        raise AssertionError("the run goes on")

    class Nothing:
        drafts = ()

    class Job:
        plan = Nothing

    monkeypatch.setattr(pipeline, "Job", lambda *_: Job)
    monkeypatch.setattr(pipeline.sharing, "begin", begin)
    monkeypatch.setattr(pipeline, "say_what_is_kept", lambda *_: progress.progress("kept"))
    monkeypatch.setattr(pipeline.backend, "require", lambda _: None)

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(None, Nothing, Path("out"), None)  # type: ignore[arg-type]
    assert capsys.readouterr().err == "kept\n", "its last word is said, and says itself"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    progress.progress("afterwards nothing is left of it")


def test_an_interrupt_that_was_heard_is_not_raised_again_while_it_ends_what_runs() -> None:
    said = []
    with contextlib.suppress(KeyboardInterrupt), interrupt.remembered():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            progress.progress("cleaning")
            said.append("cleaned")
    assert said == ["cleaned"]
    interrupt.check()


def test_a_program_that_handles_ctrl_c_goes_on_doing_so() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        with interrupt.remembered():
            signal.raise_signal(signal.SIGINT)
            interrupt.check()
        assert received == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_run_without_it() -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with interrupt.remembered():
                interrupt.check()
        except BaseException as error:  # noqa: BLE001 -- a thread's exceptions end nowhere
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed
