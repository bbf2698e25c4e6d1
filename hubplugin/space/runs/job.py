"""One run in a process of its own, which can be cancelled: what it says, and how it ended.

Knows processes and lines. Knows no page, no visitor and nothing of what is computed (worker.py does).
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from hubplugin.errors import HubPluginError
from hubplugin.progress import BARS, QUIET

KEPT_LINES = 2000
GRACE = 15.0  # seconds between being told to end and being ended
PASSED, REFUSED = 0, 2  # exit codes of the worker
SECRETS = re.compile("TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|CREDENTIAL")
BLOCK = re.compile(r"\| block (\d+)/(\d+)")


def environment(own: Mapping[str, str], home: Path | None) -> dict[str, str]:
    """What the process is given of this one's environment: no token and nothing else that is secret.

    `home`: where it keeps what it downloads; None: where this machine does.
    """
    kept = {name: value for name, value in own.items() if not SECRETS.search(name.upper())}
    kept.pop(QUIET, None)  # its lines are what the visitor sees
    caches = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")} if home else {}
    quiet = {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "PYTHONUNBUFFERED": "1", **dict.fromkeys(BARS, "1")}
    # the same packages, wherever they were imported from
    return {**kept, **caches, **quiet, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Job:
    """A run of a manifest. What it finished stays in `out` however it ends, and a next one goes on from there."""

    def __init__(self, manifest: Path, out: Path, home: Path | None = None) -> None:
        self.manifest, self.out = manifest, out
        self.cancelled = False
        self._home = home
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._starting = threading.Lock()  # a run is cancelled before its process starts, or with it
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self, token: str | None = None) -> None:
        """Start the process, unless it was cancelled. A token, for a base that is not public, goes through a pipe."""
        with self._starting:
            if self.cancelled:
                return
            self._process = self._begun()
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()
            assert self._process.stdin is not None
            try:  # the pipe stays open: its end tells the process that this one is gone
                self._process.stdin.write(f"{token or ''}\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # it could not even start, and says why

    def _begun(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "hubplugin.space.runs.worker", str(self.manifest), str(self.out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=self.manifest.parent,
            env=environment(os.environ, self._home),
            start_new_session=True,
        )

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._lines.append(line.rstrip("\n"))

    @property
    def pid(self) -> int | None:
        """The process, once it was started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether it has begun, and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def ended(self) -> bool:
        """Whether nothing of it will run any more: its process has ended, or it was cancelled before it had one."""
        return self.cancelled if self._process is None else not self.running

    @property
    def lines(self) -> list[str]:
        """What it said, without the folders of this machine."""
        return [line.replace(f"{self.manifest.parent}/", "") for line in list(self._lines)]

    @property
    def blocks(self) -> tuple[int, int] | None:
        """The block that was finished last, of how many; None before the first."""
        found = next((match for line in reversed(self.lines) if (match := BLOCK.search(line))), None)
        return (int(found[1]), int(found[2])) if found else None

    def cancel(self) -> None:
        """End the process and all that it started, and wait for that. What has ended by itself counts as that."""
        with self._starting:
            if self.ended:
                return
            self.cancelled = True
            process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # of its own session
            process.wait()
        self._finish()

    def _finish(self) -> None:
        if self._reader:
            self._reader.join(GRACE)
        if self._process and self._process.stdin:
            with contextlib.suppress(BrokenPipeError):  # what it never read, having ended early
                self._process.stdin.close()

    def error(self) -> HubPluginError | None:
        """Why an ended process failed; None where it did what it should."""
        assert self._process is not None
        code = self._process.wait()
        self._finish()
        if code == PASSED:
            return None
        said = [line.partition(":") for line in self.lines[-3:]]
        if code == REFUSED and [name for name, _, _ in said] == ["where", "what", "fix"]:
            return HubPluginError(*(text.strip() for _, _, text in said))
        what = f"ended with {code}" if code > 0 else f"was ended by signal {-code}, as for want of memory"
        return HubPluginError("the run", what, "look at its last lines; Compress goes on from what is finished")
