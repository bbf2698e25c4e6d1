"""What tests of the endpoint share: stand-ins for vLLM on Unix domain sockets, and the endpoint in front of them."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from hubplugin.errors import ServeError
from serve import engine
from serve.endpoint import app, pool
from serve.endpoint.companions.adapters import Adapter
from serve.endpoint.companions.drafting import Draft
from serve.endpoint.guard import Guard, Limits
from serve.endpoint.offer import Offer

# A server as vLLM is one, whose answers say what was asked. What it does otherwise is told by the prompt.
STUB = """
import asyncio, json, os, sys
from aiohttp import web
name, socket = sys.argv[1:]
running = {"now": 0, "most": 0, "gone": 0}

async def completions(request):
    body = await request.json()
    prompt = body.get("prompt", "")
    if prompt == "die":
        os._exit(0)
    if prompt == "broken":
        running["broken"] = True
    if running.get("broken"):
        return web.json_response({"error": {"message": "EngineCore died", "code": 500}}, status=500)
    if prompt == "bad":
        return web.json_response({"error": {"message": "temperature must be non-negative", "code": 400}}, status=400)
    running["now"] += 1
    running["most"] = max(running["most"], running["now"])
    try:
        if not body.get("stream"):
            await asyncio.sleep(body.get("wait", 0))
            heard = {key.lower(): value for key, value in request.headers.items()}
            return web.json_response({"model": name, "asked": body, "headers": heard})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(body.get("n_events", 5)):
            event = b"data: " + json.dumps({"prompt": prompt, "number": number}).encode() + b"\\n\\n"
            if prompt == "torn" and number == 2:
                await response.write(event[:9])
                os._exit(0)
            await response.write(event)
            await asyncio.sleep(body.get("wait", 0))
        await response.write(b"data: [DONE]\\n\\n")
        return response
    except asyncio.CancelledError:
        running["gone"] += 1
        raise
    finally:
        running["now"] -= 1

async def health(request):
    return web.Response(status=503 if running.get("broken") else 200)

async def metrics(request):
    return web.Response(text="# TYPE vllm:num_requests_running gauge\\n"
                        f'vllm:num_requests_running{{engine="0"}} {running["now"]}\\n')

async def seen(request):
    return web.json_response(running)

server = web.Application(client_max_size=2**30)
server.router.add_post("/v1/completions", completions)
server.router.add_post("/v1/seen", seen)
server.router.add_post("/invocations", completions)
server.router.add_get("/health", health)
server.router.add_get("/metrics", metrics)
web.run_app(server, path=socket, print=None, access_log=None, handler_cancellation=True)
"""


@dataclass
class Stubs:
    """Starts stand-ins, and remembers which."""

    started: list[str] = field(default_factory=list)
    refuse: dict[str, str] = field(default_factory=dict)  # names whose start fails -> why
    gate: threading.Event | None = None  # starts wait for it

    def __call__(
        self, offer: Offer, socket: Path, log: Path, progress: Callable[[str], None], unwanted: threading.Event
    ) -> engine.Engine:
        self.started.append(offer.name)
        if self.gate is not None:
            self.gate.wait(30)
        if offer.name in self.refuse:
            raise ServeError(offer.name, self.refuse[offer.name], "look at it")
        socket.unlink(missing_ok=True)
        command = [sys.executable, "-c", STUB, offer.name, str(socket)]
        settings: dict[str, Any] = {"url": "http://engine", "name": offer.name, "environment": dict(os.environ)}
        return engine.launch(command, **settings, socket=socket, log=log, deadline=30, unwanted=unwanted, grace=1.0)


@dataclass
class Served:
    """A running endpoint and a client of it."""

    url: str
    client: aiohttp.ClientSession
    pool: pool.Pool
    stubs: Stubs
    log: list[dict[str, Any]]

    async def ask(self, model: str | None = "a", *, path: str = "/v1/completions", **body: Any) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        content = body if model is None else {"model": model, **body}
        async with self.client.post(self.url + path, json=content) as answer:
            return answer.status, await answer.json()

    async def stream(self, model: str = "a", **body: Any) -> bytes:
        """All that a stream says."""
        content = {"model": model, "stream": True, **body}
        async with self.client.post(f"{self.url}/v1/completions", json=content) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    def pid(self, name: str = "a") -> int:
        """Of a stand-in, which is the child of its supervisor."""
        import psutil

        running = self.pool.slots[name].engine
        assert running is not None
        return psutil.Process(running.process.pid).children()[0].pid


@contextlib.asynccontextmanager
async def endpoint(
    folder: Path,
    names: Sequence[str] = ("a",),
    *,
    needs: Sequence[int] | None = None,
    budget: int = 100,
    keys: Sequence[str] = (),
    limits: Limits | None = None,
    facts: dict[str, Any] | None = None,
    draft: Draft | None = None,
    adapters: Mapping[str, tuple[Adapter, ...]] | None = None,
    **stubs: Any,
) -> AsyncIterator[Served]:
    """The endpoint in front of stand-ins, each of which takes one of `budget` bytes where `needs` does not say."""
    starts, log = Stubs(**stubs), list[dict[str, Any]]()
    own = adapters or {}
    offers = [Offer(name, folder, facts or {}, draft=draft, adapters=own.get(name, ())) for name in names]
    engines = pool.Pool(offers, needs or [1] * len(offers), budget, folder, start=starts)
    runner = web.AppRunner(app.make(engines, Guard(keys, limits or Limits()), log.append), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    watching = asyncio.create_task(engines.watch())
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            yield Served(f"http://127.0.0.1:{port}", client, engines, starts, log)
    finally:
        await engines.close(drain=0)
        watching.cancel()
        await runner.cleanup()


def run(test: Coroutine[Any, Any, None]) -> None:
    """One event loop for one test."""
    asyncio.run(asyncio.wait_for(test, 120))
