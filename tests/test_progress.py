"""Talk on stderr as a user sees it: plain lines in a pipe, a progress line on a terminal, only errors where quiet."""

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubplugin import progress

LONG = "x" * 200  # wider than the terminal
PASS = f"""
import sys, warnings
from hubplugin.progress import progress, track
progress("before")
with track("Int4 [bold]", total=3, completed=1) as bar:
    bar.advance("block 02/3 [red] {LONG}")
    print("result")
    print("a library's line", file=sys.stderr)
    bar.advance("block 03/3")
progress("after")
"""
PLAIN = ["before", f"block 02/3 [red] {LONG}", "a library's line", "block 03/3", "after"]
MANIFEST = """\
model: ./base
calibrate: {files: [text.txt], samples: 4, tokens: 64}
variants:
  Int4:
    - {method: gptq, bits: 4, group_size: 32}
"""


def piped(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@contextlib.contextmanager
def on_a_terminal(*words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A Python whose stderr is a terminal, and that terminal's other side."""
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("TTY_", "FORCE_"))}
    process = subprocess.Popen(
        [sys.executable, *words],
        env={**variables, "TERM": "xterm", "COLUMNS": "80", **environment},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.communicate()
        os.close(ours)


def read(terminal: int, until: str = "") -> str:
    """What is written to a terminal until a text appears, or to its end."""
    written = b""
    with contextlib.suppress(OSError):  # Linux says EIO when the other side is closed
        while piece := os.read(terminal, 4096):
            written += piece
            if until and until in written.decode("utf-8", "replace"):
                break
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that a terminal wide enough shows in the end."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif up := re.fullmatch(r"\x1b\[(\d+)A", token):
            row -= int(up[1])
        elif not token.startswith("\x1b") and token != "\r":
            lines[row] += token
    return [line for line in lines if line]


def test_a_pipe_gets_plain_lines_whatever_the_environment_says_of_terminals() -> None:
    for environment in ({}, {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}):
        done = piped(PASS + "assert 'rich' not in sys.modules", **environment)
        assert done.stderr.splitlines() == PLAIN and done.stdout == "result\n"


@pytest.mark.parametrize(("value", "lines"), [("1", ["a library's line"]), ("0", PLAIN), ("", PLAIN)])
def test_quiet_is_inherited_through_the_environment(value: str, lines: list[str]) -> None:
    done = piped(PASS, HUBPLUGIN_QUIET=value)
    assert done.stderr.splitlines() == lines and done.stdout == "result\n"


def test_a_terminal_shows_a_progress_line_and_keeps_the_plain_ones() -> None:
    with on_a_terminal("-c", PASS) as (process, terminal):
        written = read(terminal)
        assert process.wait(60) == 0 and process.stdout is not None and process.stdout.read() == "result\n"
    shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", written)
    for count in (1, 2, 3):
        assert f"Int4 [bold] | block {count}/3" in shown
    assert "eta" in shown and screen(written) == PLAIN
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize("environment", [{"HUBPLUGIN_QUIET": "1"}, {"TERM": "dumb"}, {"TTY_INTERACTIVE": "0"}])
def test_no_progress_line_where_it_is_quiet_or_the_cursor_cannot_move(environment: dict[str, str]) -> None:
    with on_a_terminal("-c", PASS, **environment) as (process, terminal):
        written = read(terminal)
        assert process.wait(60) == 0
    assert "\x1b" not in written
    assert written.splitlines() == (["a library's line"] if "HUBPLUGIN_QUIET" in environment else PLAIN)


def test_the_option_and_the_variable_leave_only_errors_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MANIFEST.replace("./base", "nobody/nothing"), encoding="utf-8")
    (tmp_path / "text.txt").write_text("text", encoding="utf-8")

    def lines(*words: str, **environment: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "hubplugin", *words, "plan", "m.yaml"],
            cwd=tmp_path,
            env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2 and done.stdout == ""
        return done.stderr.splitlines()

    talk = lines()
    assert talk[0].startswith("hub ") and len(talk) > 3
    assert lines("--quiet") == lines("-q") == lines(HUBPLUGIN_QUIET="1") == talk[-3:]


def test_silence_reaches_the_libraries_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (progress.QUIET, *progress.BARS):
        monkeypatch.setenv(name, "0")
    assert not progress.quiet()
    progress.silence()
    assert progress.quiet() and all(os.environ[name] == "1" for name in progress.BARS)


def test_a_run_on_a_terminal_shows_its_blocks_and_ctrl_c_leaves_the_terminal_as_it_was(
    tmp_path: Path, pico_folder: Path
) -> None:
    shutil.copytree(pico_folder, tmp_path / "base")
    (tmp_path / "m.yaml").write_text(MANIFEST, encoding="utf-8")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    words = ("-m", "hubplugin", "run", str(tmp_path / "m.yaml"), "--out", str(tmp_path / "out"))
    with on_a_terminal(*words) as (process, terminal):
        written = read(terminal, until="Int4 | block 1/2")
        process.send_signal(signal.SIGINT)
        written += read(terminal)
        assert process.wait(60) == 130
    lines = screen(written)
    assert lines[0].startswith("note: calibrate.tokens: ")  # an old key
    assert lines[1].startswith("calibration: ") and lines[-1] == "interrupted"
    assert any(re.match(r"Int4 \| block 01/2 \| worst loss", line) for line in lines)
    assert not any("block 1/2" in line for line in lines), "the progress line is erased"
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
