"""An engine per model, started when it is first asked for, stopped when others need its memory, started again when it
dies. Knows engines and memory; nothing of requests but how many are being answered.

One event loop owns the pool; starting and stopping an engine blocks, and happens in threads.
"""

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from hubplugin.errors import ServeError
from serve.endpoint.faults import Refused, unknown_model
from serve.endpoint.offer import Offer
from serve.engine import Engine
from serve.engine import start as start_engine

BACK_OFF = 1.0, 60.0  # seconds before a dead engine is started again: the first time, and at most; doubled each time
LOOK = 0.25  # seconds between two looks at whether engines still live
PATIENCE = 5.0  # seconds that a request waits for a dead engine's next start, where it comes so soon
PROVEN = 60.0  # seconds that an engine must live for its earlier deaths to be forgotten

Start = Callable[[Offer, Path, Path, Callable[[str], None], threading.Event], Engine]


class State(StrEnum):
    """Of an engine."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"  # and not to be started before `Slot.not_before`


@dataclass
class Slot:
    """A model, and its engine where there is one."""

    offer: Offer
    need: int  # bytes
    log: Path
    socket: Path
    state: State = State.STOPPED
    engine: Engine | None = None
    starting: "asyncio.Task[None] | None" = None
    active: int = 0  # requests that it is answering
    waiting: int = 0  # requests that its start was made for and that have not gone on yet
    used: float = 0.0  # when the last request began; monotonic
    since: float = 0.0  # when it became ready
    deaths: int = 0  # one after another
    restarts: int = 0
    not_before: float = 0.0
    wanted: bool = False  # to be kept alive
    why: str = ""  # it failed
    unwanted: threading.Event = field(default_factory=threading.Event)

    @property
    def holds(self) -> bool:
        """Whether it takes memory, or is about to."""
        return self.state in (State.STARTING, State.READY, State.STOPPING)


def start_vllm(
    offer: Offer, socket: Path, log: Path, progress: Callable[[str], None], unwanted: threading.Event
) -> Engine:
    """vLLM for an offer, on a socket that only this user reaches."""
    socket.unlink(missing_ok=True)
    return start_engine(
        offer.folder,
        name=offer.name,
        socket=socket,
        max_model_len=offer.max_model_len,
        extra=offer.words,
        log=log,
        on_progress=progress,
        unwanted=unwanted,
    )


class Pool:
    """Engines of several models within a budget of memory."""

    def __init__(
        self,
        offers: Sequence[Offer],
        needs: Sequence[int],
        budget: int,
        logs: Path,
        progress: Callable[[str, str], None] = lambda name, line: None,
        start: Start = start_vllm,
    ) -> None:
        self.budget, self.progress, self._start = budget, progress, start
        self._sockets = Path(tempfile.mkdtemp(prefix="hubplugin-"))  # of mode 0700; a socket's path has to be short
        self.slots = {
            offer.name: Slot(offer, need, logs / f"{index}-{_file_name(offer.name)}.log", self._sockets / str(index))
            for index, (offer, need) in enumerate(zip(offers, needs, strict=True))
        }
        # adapters are computed by their base's engine
        adapted = {adapter.name: slot for slot in self.slots.values() for adapter in slot.offer.adapters}
        self.named = {**self.slots, **adapted}
        self.closing = False
        self.failed = False  # whether any engine ever did
        self._making_room = asyncio.Lock()  # one engine starts at a time: starting is what takes most
        self._changed = asyncio.Condition()

    def slot(self, name: str) -> Slot:
        """Of a model, or of the base of an adapter. Raises Refused where there is no such model."""
        try:
            return self.named[name]
        except KeyError:
            raise unknown_model(name, list(self.named)) from None

    @contextlib.asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Slot]:
        """The slot of a model with a running engine that is not stopped meanwhile; started where there is none.

        Raises Refused where there is no such model, or its engine does not start.
        """
        slot = self.slot(name)
        while self.closing or slot.state is not State.READY:
            await self.ready(slot)
        slot.active += 1
        slot.used = time.monotonic()
        try:
            yield slot
        finally:
            slot.active -= 1
            if slot.state is State.STOPPING:
                async with self._changed:
                    self._changed.notify_all()

    async def ready(self, slot: Slot) -> None:
        """Wait until an engine is ready, starting it where nobody does yet. Raises Refused where it does not start."""
        if slot.state is State.FAILED and (left := slot.not_before - time.monotonic()) > 0:
            if left > PATIENCE:
                message = f"The engine of {slot.offer.name} is not running: {slot.why}"
                raise Refused(503, message, "engine_down", after=left)
            await asyncio.sleep(left)
        if self.closing:
            raise Refused(503, "The endpoint is shutting down", "shutting_down", after=10)
        try:
            await self.start(slot)
        except ServeError as error:
            raise Refused(503, f"{error.where}: {error.what}", "engine_down", after=BACK_OFF[1]) from error

    async def start(self, slot: Slot) -> None:
        """Start an engine, or wait for the one that is being started. Raises ServeError where it does not get ready."""
        slot.waiting += 1
        try:
            await asyncio.shield(self._launch(slot))
        finally:
            slot.waiting -= 1

    def _launch(self, slot: Slot) -> "asyncio.Task[None]":
        """The task that brings up a slot's engine; begun where there is none yet."""
        if slot.starting is None:
            slot.starting = asyncio.create_task(self._bring_up(slot))
            slot.starting.add_done_callback(lambda task: _over(slot, task))
        return slot.starting

    async def _bring_up(self, slot: Slot) -> None:
        async with self._making_room:
            try:
                if not self.closing:
                    await self._make_room(slot)
                if self.closing:
                    raise ServeError(slot.offer.name, "the endpoint is shutting down", "start it again")
                slot.state = State.STARTING
                slot.unwanted.clear()

                def progress(line: str) -> None:
                    self.progress(slot.offer.name, line)

                slot.engine = await asyncio.to_thread(
                    self._start, slot.offer, slot.socket, slot.log, progress, slot.unwanted
                )
            except ServeError as error:
                self._failed(slot, error.what)
                raise
            slot.state, slot.since = State.READY, time.monotonic()

    def _fits(self, slot: Slot) -> bool:
        return sum(other.need for other in self.slots.values() if other.holds) + slot.need <= self.budget

    async def _make_room(self, slot: Slot) -> None:
        """Stop idle engines, the least recently used first, until this one's memory is free; where all are busy, the
        least recently used takes no further requests, and is stopped when it has answered what it has."""
        name = slot.offer.name
        if slot.need > self.budget:
            what = (
                f"its engine takes {slot.need / 1e9:.1f} GB, and all engines may take {max(0, self.budget) / 1e9:.1f}"
            )
            raise ServeError(name, what, "raise --memory, or lower --max-model-len")
        while not self._fits(slot):
            others = [other for other in self.slots.values() if other.state is State.READY]
            await self._stop(min(others, key=lambda other: (other.active > 0, other.used)), f"{name} needs its memory")

    async def _stop(self, slot: Slot, why: str) -> None:
        while slot.waiting and slot.state is State.READY:
            await asyncio.sleep(0)  # those that it was started for come first, or two models could only stop each other
        slot.state, slot.wanted = State.STOPPING, False
        self.progress(slot.offer.name, f"stopping: {why}")
        async with self._changed:
            await self._changed.wait_for(lambda: slot.active == 0)
        if slot.engine is not None:
            await asyncio.to_thread(slot.engine.stop)
        slot.engine, slot.state = None, State.STOPPED

    def _failed(self, slot: Slot, why: str) -> None:
        slot.engine, slot.state, slot.why, self.failed = None, State.FAILED, why, not self.closing or self.failed
        wait = min(BACK_OFF[1], BACK_OFF[0] * 2**slot.deaths)
        slot.deaths += 1
        slot.not_before = time.monotonic() + wait
        self.progress(slot.offer.name, f"{why}; not started again for {wait:.0f} s")

    async def watch(self) -> None:
        """Look after the engines until cancelled: one that died is started again, after a while that grows, where it
        fits beside those that live; otherwise when it is asked for."""
        while True:
            await asyncio.sleep(LOOK)
            for slot in self.slots.values():
                if slot.state is State.READY and slot.engine is not None and slot.engine.process.poll() is not None:
                    await self.bury(slot)
                elif self._due(slot):
                    self._launch(slot)

    def _due(self, slot: Slot) -> bool:
        """Whether an engine that died is to be started again now."""
        waited = slot.state is State.FAILED and time.monotonic() >= slot.not_before
        return waited and slot.wanted and self._fits(slot)

    async def bury(self, slot: Slot) -> None:
        """An engine that died, or does not answer any more: what is left of it ends, and it is to be started again."""
        if slot.engine is None or slot.state is not State.READY or self.closing:
            return  # somebody else saw it too, or stops it
        gone = slot.engine
        if time.monotonic() - slot.since > PROVEN:
            slot.deaths = 0
        slot.wanted, slot.restarts = True, slot.restarts + 1
        self._failed(slot, f"vLLM ended by itself, see {slot.log}")
        await asyncio.to_thread(gone.stop)

    async def close(self, drain: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Take no more requests, wait at most `drain` seconds for those under way, end all engines."""
        self.closing = True
        for slot in self.slots.values():
            slot.unwanted.set()
        deadline = time.monotonic() + drain
        while any(slot.active for slot in self.slots.values()) and time.monotonic() < deadline and not hurry():
            await asyncio.sleep(0.05)
        async with self._making_room:
            engines = [slot.engine for slot in self.slots.values() if slot.engine is not None]
            await asyncio.gather(*(asyncio.to_thread(running.stop) for running in engines))
        for slot in self.slots.values():
            slot.engine, slot.state = None, State.STOPPED
        shutil.rmtree(self._sockets, ignore_errors=True)


def _over(slot: Slot, task: "asyncio.Task[None]") -> None:
    slot.starting = None
    if not task.cancelled():
        task.exception()  # whoever waited for it has it; nobody has to


def _file_name(name: str) -> str:
    """A model's name as that of a file."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name)[:100]
