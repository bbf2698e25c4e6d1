"""The least that passes a stream on: starlette and httpx, no limits, no keys, no errors of its own.

python bench/gateway_plain.py PORT URL
"""

import sys
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

CLIENT = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None), trust_env=False)


async def passed(request: Request) -> StreamingResponse:
    """The engine's answer, byte by byte."""
    headers = {"Content-Type": request.headers.get("Content-Type", "")}
    asked = CLIENT.build_request(
        request.method, sys.argv[2] + request.url.path, content=await request.body(), headers=headers
    )
    answer = await CLIENT.send(asked, stream=True)

    async def body() -> AsyncIterator[bytes]:
        async for piece in answer.aiter_raw():
            yield piece
        await answer.aclose()

    return StreamingResponse(body(), answer.status_code, {"Content-Type": answer.headers.get("Content-Type", "")})


if __name__ == "__main__":
    app = Starlette(routes=[Route("/{path:path}", passed, methods=["GET", "POST"])])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
