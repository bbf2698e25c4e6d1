"""The endpoint in the foreground: its keys, its engines, its port, and a stop in good order."""

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from aiohttp import web

from hubplugin.errors import ServeError
from serve import forking, ports, secret_lines, signals, vllm_settings
from serve.endpoint import app, offer
from serve.endpoint.guard import Guard, Limits
from serve.endpoint.offer import Offer
from serve.endpoint.pool import Pool

KEY = "VLLM_API_KEY"
REQUESTS = "requests.jsonl"  # below the folder of logs


@dataclass(frozen=True)
class Settings:
    """How an endpoint is served."""

    host: str = ports.LOOPBACK
    port: int | None = None  # a free one where None
    keys: tuple[str, ...] = ()
    open: bool = False  # without keys beyond loopback
    limits: Limits = field(default_factory=Limits)
    memory: int | None = None  # bytes for all engines; None: `offer.budget`
    eager: bool = False  # every engine at once, not at the first request
    logs: Path | None = None  # folder; None: a temporary one, removed after a stop in good order
    drain: float = 30.0  # seconds for requests under way when it is stopped


def keys(file: Path | None) -> tuple[str, ...]:
    """API keys: one per line of a file, and that of the environment. Raises ServeError where the file has none."""
    found = [os.environ[KEY]] if os.environ.get(KEY) else []
    if file is not None:
        found += [line for _, line in secret_lines.read(file, "key", "give one with a key per line")]
    return tuple(found)


def run_forever(
    offers: Sequence[Offer],
    settings: Settings,
    ready: Callable[[str], None],
    progress: Callable[[str], None] = lambda line: None,
) -> int:
    """Serve until SIGINT (returns 130) or SIGTERM (returns 0). `ready` is called once, with the URL, when the first
    model's engine answers. Raises ServeError where it does not, or the port cannot be bound."""
    _refuse(offers, settings)
    return asyncio.run(_run(offers, settings, ready, progress))


def _refuse(offers: Sequence[Offer], settings: Settings) -> None:
    if not ports.is_loopback(settings.host) and not settings.keys and not settings.open:
        what = "is not loopback, and no API key is asked for: whoever reaches the port could use it"
        raise ServeError(settings.host, what, f"set {KEY}, give --keys FILE, or say --open")
    offer.check(offers, vllm_settings.find_device())


async def _run(
    offers: Sequence[Offer], settings: Settings, ready: Callable[[str], None], progress: Callable[[str], None]
) -> int:
    with forking.kept():
        return await _serve(offers, settings, ready, progress)


async def _serve(
    offers: Sequence[Offer], settings: Settings, ready: Callable[[str], None], progress: Callable[[str], None]
) -> int:
    device, asked = vllm_settings.find_device(), _Asked()
    offers = offer.shared(offers, device)
    needs = [offer.memory_needed(one, device) for one in offers]
    logs = settings.logs or Path(tempfile.mkdtemp(prefix="hubplugin-logs-"))
    logs.mkdir(parents=True, exist_ok=True)
    budget = offer.budget(device, settings.memory)
    pool = Pool(offers, needs, budget, logs, lambda name, line: progress(f"{name} | {line}"))
    with (logs / REQUESTS).open("a", encoding="utf-8") as log:
        guarded = app.make(pool, Guard(settings.keys, settings.limits), lambda entry: _note(entry, log))
        # a client that goes away frees its place in the engine
        runner = web.AppRunner(guarded, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        watching = asyncio.create_task(pool.watch())
        try:
            url = await _listen(runner, settings)
            if await _started(pool, offers if settings.eager else offers[:1], asked.stop):
                ready(url)
                await asked.stop.wait()
                progress(f"stopping; requests under way have {settings.drain:g} s")
        finally:
            await pool.close(settings.drain, hurry=lambda: len(asked.signals) > 1)
            watching.cancel()
            await runner.cleanup()
    if settings.logs is None and not pool.failed:  # the evidence stays
        shutil.rmtree(logs, ignore_errors=True)
    return signals.exit_code(asked.signals)


class _Asked:
    """SIGINT and SIGTERM, caught: the first asks for a stop, the second for one at once."""

    def __init__(self) -> None:
        self.stop, self.signals = asyncio.Event(), list[int]()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._come, number)

    def _come(self, number: int) -> None:
        self.signals.append(number)
        self.stop.set()


def _note(entry: dict[str, Any], log: TextIO) -> None:
    log.write(json.dumps(entry) + "\n")
    log.flush()


async def _listen(runner: web.AppRunner, settings: Settings) -> str:
    port = ports.choose(settings.host, settings.port)
    try:
        await web.TCPSite(runner, settings.host, port).start()
    except OSError as error:
        raise ServeError(f"{settings.host}:{port}", "the port was taken", "choose another with --port") from error
    return ports.url(settings.host, port)


async def _started(pool: Pool, offers: Sequence[Offer], stop: asyncio.Event) -> bool:
    """Whether the engines of these offers are there; False where somebody stopped it meanwhile."""
    stopped = asyncio.create_task(stop.wait())
    for one in offers:
        starting = asyncio.create_task(pool.start(pool.slot(one.name)))
        await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            starting.cancel()
            return False
        starting.result()
    stopped.cancel()
    return True
