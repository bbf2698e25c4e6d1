"""Requests of any shape at the endpoint, and very many of them: stand-ins for vLLM, no server error, flat memory."""

import asyncio
import gc
import json
import random
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from endpoint_helpers import Served, endpoint, run

from serve.endpoint.guard import Limits

REQUESTS = 600
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "PROPFIND"]
SEGMENTS = [
    "v1",
    "models",
    "completions",
    "chat",
    "..",
    ".",
    "%2e%2e",
    "metrics",
    "health",
    "invocations",
    "a b",
    "\u00e9",
    "",
]
KEYS = [
    "model",
    "prompt",
    "messages",
    "stream",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "tool_choice",
    "n",
    "stop",
]
HEADERS = [
    "Content-Type",
    "Accept",
    "X-Request-Id",
    "Authorization",
    "Content-Encoding",
    "Expect-Ct",
    "X-Forwarded-For",
]


def value(chance: random.Random, depth: int = 0) -> Any:
    """Any JSON."""
    simple = [None, True, False, 0, -1, 2**70, 1e308, "", "a", "model", "\u0000", "\ud83d\ude00" * 3, "x" * 2000]
    if depth > 3 or chance.random() < 0.6:
        return chance.choice(simple)
    if chance.random() < 0.5:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(KEYS): value(chance, depth + 1) for _ in range(chance.randrange(4))}


def body(chance: random.Random) -> bytes:
    """JSON of a request with some of its values changed, other JSON, JSON cut off, or no JSON."""
    kind = chance.randrange(5)
    if kind == 0:
        return chance.randbytes(chance.randrange(200))
    if kind == 1:
        return json.dumps(value(chance)).encode()
    asked = {"model": "a", "prompt": "x", **{key: value(chance) for key in chance.sample(KEYS, chance.randrange(4))}}
    whole = json.dumps(asked).encode()
    return whole[: chance.randrange(len(whole))] if kind == 2 else whole


async def ask(served: Served, chance: random.Random) -> None:
    """One request of any shape; fails where the answer is not one of ours."""
    path = "/" + "/".join(chance.choice(SEGMENTS) for _ in range(chance.randrange(5)))
    if chance.random() < 0.6:
        path = chance.choice(["/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/a"])
    method = chance.choice(METHODS) if chance.random() < 0.4 else "POST"
    headers = {name: chance.choice(["", "a", "text/plain", "\u00ff" * 300]) for name in chance.sample(HEADERS, 2)}
    content = body(chance)
    async with served.client.request(method, served.url + path, data=content, headers=headers) as answer:
        said = await answer.read()
        told = f"{method} {path} {headers} {content[:200]!r}: {answer.status} {said[:200]!r}"
        assert answer.status < 500, told
        if answer.status >= 400 and method != "HEAD" and answer.headers.get("X-Request-Id"):
            assert {"message", "type", "code"} <= set(json.loads(said)["error"]), told


def test_no_request_of_any_shape_is_a_servers_error(tmp_path: Path) -> None:
    async def test() -> None:
        chance = random.Random(16)
        async with endpoint(tmp_path, limits=Limits(tokens=50, body_bytes=4096)) as served:
            for _ in range(REQUESTS // 20):
                await asyncio.gather(*(ask(served, random.Random(chance.random())) for _ in range(20)))
            assert (await served.ask("a", prompt="x"))[0] == 200
            assert served.pool.slots["a"].active == 0 and served.pool.slots["a"].restarts == 0

    run(test())


def test_very_many_requests_leave_memory_and_descriptors_as_they_were(tmp_path: Path) -> None:
    async def one(served: Served, number: int) -> None:
        if number % 3 == 0:
            assert (await served.stream("a", prompt="x")).endswith(b"data: [DONE]\n\n")
        elif number % 10 == 1:  # a client that goes away
            asked = served.client.post(f"{served.url}/v1/completions", json={"model": "a", "stream": True, "wait": 0.2})
            async with asked as answer:
                await answer.content.readany()
        elif number % 10 == 2:
            assert (await served.ask("nobody", prompt="x"))[0] == 404
        else:
            assert (await served.ask("a", prompt="x" * 500))[0] == 200

    async def test() -> None:
        this = psutil.Process()
        async with endpoint(tmp_path) as served:

            async def many(count: int) -> tuple[int, int]:
                for start in range(0, count, 25):
                    await asyncio.gather(*(one(served, number) for number in range(start, start + 25)))
                    served.log.clear()  # the test's own
                await asyncio.sleep(0.5)
                gc.collect()
                return this.memory_info().rss, this.num_fds()

            before = await many(500)
            after = await many(2000)
            assert after[0] - before[0] < 8_000_000
            assert after[1] - before[1] <= 5
            assert served.pool.slots["a"].active == 0

    run(test())


def test_what_is_no_http_is_answered_or_dropped_and_nothing_else_notices(tmp_path: Path) -> None:
    async def test() -> None:
        async with endpoint(tmp_path) as served:
            port = int(served.url.rpartition(":")[2])
            chance = random.Random(1)
            for _ in range(40):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(chance.randbytes(chance.randrange(1, 400)) + b"\r\n\r\n")
                writer.write_eof()
                said = await asyncio.wait_for(reader.read(), 5)
                assert not said or b" 400 " in said.splitlines()[0]
                writer.close()
            try:
                assert (await served.ask("a", prompt="x"))[0] == 200
            except aiohttp.ClientError as error:
                raise AssertionError("the endpoint is gone") from error

    run(test())
