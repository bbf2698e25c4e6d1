"""The visitors of the page: for each a folder that nobody names, at most one run, and an end that removes both.

Knows folders, manifests as text and jobs. Knows no page and no token.
"""

import itertools
import shutil
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from hubplugin.disk import digest
from hubplugin.errors import HubPluginError
from hubplugin.space.options import TEXT_NAME
from hubplugin.space.runs.job import Job

IDLE = 6 * 3600.0  # seconds after which a visitor counts as gone, whose page never said so
REMEMBERED = 10_000  # visitors that have left
MOST_ASKED = 16  # runs that wait or are under way; each holds one of the page's 40 places for events
MANIFEST = "manifest.yaml"
OUT = "_variants"  # begins as no name of the Hub does: a manifest beside it cannot name it


@dataclass
class Visitor:
    """One open page."""

    folder: Path
    seen: float = field(default_factory=time.monotonic)
    job: Job | None = None

    def place(self, text: str) -> Path:
        """The manifest of this text, in a folder of its own."""
        folder = self.folder / digest(text)[:16]
        folder.mkdir(exist_ok=True)
        manifest = folder / MANIFEST
        manifest.write_text(text, encoding="utf-8")
        return manifest

    @property
    def home(self) -> Path:
        """Where what is downloaded for this visitor alone is kept."""
        return self.folder / "hub"


class Visitors:
    """All open pages of a server. `shared`: they are not all one person's, so downloads are kept apart too."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._root = Path(tempfile.mkdtemp(prefix="hubplugin-space-"))
        self._lock = threading.RLock()
        self._open: dict[str, Visitor] = {}
        self._asked: list[Job] = []  # in the order of their turns
        self._left: deque[str] = deque(maxlen=REMEMBERED)

    def of(self, session: str | None) -> Visitor:
        """The visitor of a session of the page. Raises HubPluginError where it has ended."""
        with self._lock:
            if not session or session in self._left:
                raise HubPluginError("page", "its session has ended, and its files are removed", "load the page again")
            for other in [key for key, one in self._open.items() if self._idle(one) and key != session]:
                self.leave(other)
            if session not in self._open:
                # a name of ours: that of the session comes from outside
                self._open[session] = Visitor(Path(tempfile.mkdtemp(dir=self._root)))
            self._open[session].seen = time.monotonic()
            return self._open[session]

    def cache(self, visitor: Visitor) -> Path | None:
        """The folder of the Hub's client for this visitor; None: the machine's own."""
        return visitor.home / "hub" if self._shared else None

    def begin(self, session: str | None, text: str, uploaded: Path | None = None) -> Job:
        """The job of a manifest, last in the line. Of another manifest's job before, nothing is kept.

        Raises HubPluginError where the visitor has a run under way, or too many others wait.
        """
        with self._lock:
            visitor = self.of(session)
            if visitor.job is not None and visitor.job.running:
                raise HubPluginError("page", "a run of this page is under way", "wait for its end, or cancel it")
            if visitor.job is not None:
                visitor.job.cancel()  # it has not started
            if len(self._line()) >= MOST_ASKED:
                raise HubPluginError("page", f"{MOST_ASKED} runs of other visitors come first", "try again later")
            manifest = visitor.place(text)
            if visitor.job is not None and visitor.job.manifest != manifest:
                shutil.rmtree(visitor.job.manifest.parent, ignore_errors=True)
            if uploaded is not None:
                shutil.copyfile(uploaded, manifest.parent / TEXT_NAME)
            visitor.job = Job(manifest, manifest.parent / OUT, visitor.home if self._shared else None)
            self._asked.append(visitor.job)
            return visitor.job

    def before(self, job: Job) -> int:
        """How many runs come before a job's turn, among them one that was cancelled and is still ending."""
        with self._lock:
            return sum(1 for _ in itertools.takewhile(lambda other: other is not job, self._line()))

    def _line(self) -> list[Job]:
        self._asked = [job for job in self._asked if not job.ended]
        return self._asked

    def leave(self, session: str | None) -> None:
        """End what a visitor has running, and remove their folder."""
        with self._lock:
            visitor = self._open.pop(session or "", None)
            self._left.append(session or "")
        if visitor is None:
            return
        if visitor.job is not None:
            visitor.job.cancel()
        shutil.rmtree(visitor.folder, ignore_errors=True)

    def close(self) -> None:
        """The server ends: nobody has anything here any more."""
        for session in list(self._open):
            self.leave(session)
        shutil.rmtree(self._root, ignore_errors=True)

    def _idle(self, visitor: Visitor) -> bool:
        at_work = visitor.job is not None and not visitor.job.ended
        return not at_work and time.monotonic() - visitor.seen > IDLE
