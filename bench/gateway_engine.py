"""A stand-in for vLLM: streams chunks of an OpenAI chat completion at a pace that each request names.

    python bench/gateway_engine.py ADDRESS    # a TCP port of loopback, or the path of a Unix domain socket

A request's `max_tokens` is the number of chunks with content, its `seed` the microseconds between two of them (0: as
fast as they can be written). The first comes at once, the others when they are due: being late does not add up.
"""

import asyncio
import json
import sys
import time

from aiohttp import web

CHUNK = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "model"}


def event(**delta: str | None) -> bytes:
    """One chunk, as vLLM writes it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None if delta else "stop"}
    return b"data: " + json.dumps({**CHUNK, "choices": [choice]}).encode() + b"\n\n"


ROLE, STOP = event(role="assistant", content=""), event()
# LiteLLM ends a stream that says the same a hundred times
WORDS = [event(content=f" word{number}") for number in range(10)]


async def chat(request: web.Request) -> web.StreamResponse:
    """The stream."""
    asked = await request.json()
    pace = (asked.get("seed") or 0) / 1e6
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    begun = time.monotonic()
    await response.write(ROLE)
    for number in range(asked["max_tokens"]):
        if pace and (left := begun + number * pace - time.monotonic()) > 0:
            await asyncio.sleep(left)
        elif not pace:
            await asyncio.sleep(0)
        await response.write(WORDS[number % len(WORDS)])
    await response.write(STOP + b"data: [DONE]\n\n")
    return response


async def health(request: web.Request) -> web.Response:
    """It lives."""
    return web.Response()


async def models(request: web.Request) -> web.Response:
    """The one there is."""
    return web.json_response({"object": "list", "data": [{"id": "model", "object": "model", "owned_by": "vllm"}]})


def main() -> None:
    """Serve until a signal comes."""
    server = web.Application()
    server.router.add_post("/v1/chat/completions", chat)
    server.router.add_get("/health", health)
    server.router.add_get("/v1/models", models)
    address = sys.argv[1]
    place = {"host": "127.0.0.1", "port": int(address)} if address.isdigit() else {"path": address}
    web.run_app(server, **place, print=None, access_log=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
