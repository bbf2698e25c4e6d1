"""Passes one request on to an engine and its answer back, byte by byte as it comes. Knows HTTP; nothing of memory."""

import contextlib
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from serve.endpoint.context import CONTEXT
from serve.endpoint.faults import Refused

HEADERS_THERE = ("Accept", "Content-Type")  # of the request; keys, cookies and addresses of clients stay here
HEADERS_BACK = ("Content-Type", "Retry-After")
DONE = b"data: [DONE]"
SILENCE = 1800.0  # seconds that an engine may be silent: a long prompt on a CPU, behind others


class EngineLost(Exception):
    """The engine cannot be reached, or ended before it began to answer."""


@contextlib.asynccontextmanager
async def connection(socket: str) -> AsyncIterator[aiohttp.ClientSession]:
    """To one engine, for as many requests at once as there are."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE)
    connector = aiohttp.UnixConnector(socket, limit=0, keepalive_timeout=30)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield session


async def forward(session: aiohttp.ClientSession, request: web.Request, path: str, body: bytes) -> web.StreamResponse:
    """The engine's answer, already on its way to the client.

    Raises Refused for a path that vLLM does not have, and EngineLost where the engine is not there: nothing has been
    sent then. One that ends in the middle of its answer ends a stream of events with an error, any other is broken off.
    """
    headers = {name: request.headers[name] for name in HEADERS_THERE if name in request.headers}
    headers |= {"X-Request-Id": request[CONTEXT].id, "Accept-Encoding": "identity"}
    try:
        upstream = await session.post(f"http://engine{path}", data=body, headers=headers)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineLost(type(error).__name__) from error
    async with upstream:
        if upstream.status >= 500:
            await _unless_alive(session, upstream)
        back = {name: upstream.headers[name] for name in HEADERS_BACK if name in upstream.headers}
        if upstream.content_type == "text/event-stream":
            return await _events(request, upstream, back)
        try:
            whole = await upstream.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineLost(type(error).__name__) from error
        if upstream.status in (404, 405) and b'"error"' not in whole:  # said by its web framework, not by vLLM
            raise Refused(upstream.status, f"{request.method} {path} is not part of this endpoint", "not_found")
        return web.Response(body=whole, status=upstream.status, headers=back)


async def _events(
    request: web.Request, upstream: aiohttp.ClientResponse, headers: dict[str, str]
) -> web.StreamResponse:
    """A stream, piece by piece; one that does not end as streams do gets an error at its end."""
    response = web.StreamResponse(status=upstream.status, headers={**headers, "Cache-Control": "no-cache"})
    response.headers.update(request[CONTEXT].headers)
    await response.prepare(request)
    kept, last = b"", b""  # what is not yet a whole event; the event before it
    async for piece in _pieces(upstream):
        events, end, kept = (kept + piece).rpartition(b"\n\n")
        if end:
            await response.write(events + end)
            last = events[-len(DONE) :]
    if upstream.status == 200 and last != DONE and not request.path.endswith("/responses"):
        await response.write(Refused(503, "The engine stopped in the middle of the answer", "engine_lost").event())
    await response.write_eof()
    return response


async def _pieces(upstream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What comes, as it comes; ends where the engine does."""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async for piece in upstream.content.iter_any():
            yield piece


async def _unless_alive(session: aiohttp.ClientSession, upstream: aiohttp.ClientResponse) -> None:
    """Raise EngineLost where an engine that answers with a server's error is not healthy either."""
    try:
        async with session.get("http://engine/health", timeout=aiohttp.ClientTimeout(total=5)) as health:
            if health.status == 200:
                return
    except (aiohttp.ClientError, TimeoutError):
        pass
    raise EngineLost(f"status {upstream.status}")
