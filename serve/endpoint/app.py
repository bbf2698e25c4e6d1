"""The routes of the endpoint: /v1/models of its own, every other /v1/* passed on to the engine of the model that it
names, and what machines ask to look after it. Nothing else of vLLM's can be reached through it.

Knows requests; starts nothing.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from serve.endpoint import forwarding, metrics
from serve.endpoint.context import CONTEXT, begin
from serve.endpoint.faults import Refused
from serve.endpoint.guard import Guard, limit_tokens
from serve.endpoint.offer import Offer
from serve.endpoint.pool import Pool, Slot, State

Log = Callable[[dict[str, Any]], None]
POOL = web.AppKey("pool", Pool)
GUARD = web.AppKey("guard", Guard)
SESSIONS = web.AppKey("sessions", dict[str, aiohttp.ClientSession])
MEASURES = web.AppKey("measures", metrics.Measures)
LOG: web.AppKey[Log] = web.AppKey("log")
CREATED = web.AppKey("created", int)
TRIES = 2  # an engine that is lost before it answers is asked once more when it is there again

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make(pool: Pool, guard: Guard, log: Log = lambda entry: None) -> web.Application:
    """The endpoint in front of a pool. `log` gets a dict per request: when, who, how long; never what was said."""
    app = web.Application(middlewares=[answered], client_max_size=guard.limits.body_bytes)
    app[POOL], app[GUARD], app[LOG], app[MEASURES] = pool, guard, log, metrics.Measures()
    app[CREATED] = int(time.time())
    app.cleanup_ctx.append(sessions)
    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)
    app.router.add_get("/metrics", measured)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/models/{name:.+}", model)
    app.router.add_post("/v1/{path:[a-z_]+(?:/[a-z_]+)*}", asked)  # no dots: nothing that leads out of /v1
    return app


async def sessions(app: web.Application) -> AsyncIterator[None]:
    """Connections to all engines, for as long as the endpoint runs."""
    async with contextlib.AsyncExitStack() as stack:
        app[SESSIONS] = {
            name: await stack.enter_async_context(forwarding.connection(str(slot.socket)))
            for name, slot in app[POOL].slots.items()
        }
        yield


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer has an id and is counted; everything that goes wrong is said as OpenAI's API says it."""
    context = begin(request)
    begun, status = time.monotonic(), 499  # the client went away
    try:
        try:
            response = await handler(request)
        except Refused as refused:
            response = refused.response()
        except web.HTTPRequestEntityTooLarge:
            limit = request.app[GUARD].limits.body_bytes
            response = Refused(413, f"The request is longer than {limit} bytes", "request_too_large").response()
        except web.HTTPException as error:  # no such route, another method
            message = f"{request.method} {request.path} is not part of this endpoint"
            response = Refused(error.status, message, "not_found").response()
        status = response.status
        if not response.prepared:
            response.headers.update(context.headers)
        return response
    finally:
        seconds, name = time.monotonic() - begun, context.model
        request.app[MEASURES].count(name, request.path if name else "", status, seconds)
        entry = {"id": context.id, "path": request.path, "model": name, "client": context.client}
        request.app[LOG]({"time": time.time(), **entry, "status": status, "seconds": round(seconds, 4)})


async def health(request: web.Request) -> web.Response:
    """The endpoint itself lives."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Whether requests are taken: 200 where an engine is ready, or would be started; 503 while shutting down, or where
    every engine is down."""
    pool = request.app[POOL]
    takes = not pool.closing and any(_can(slot) for slot in pool.slots.values())
    states = {name: slot.state.value for name, slot in pool.slots.items()}
    return web.json_response({"ready": takes, "engines": states}, status=200 if takes else 503)


def _can(slot: Slot) -> bool:
    """The first start is waited for; an engine that was stopped for others is there again when it is asked."""
    return slot.state in (State.READY, State.STOPPED, State.STOPPING)


async def models(request: web.Request) -> web.Response:
    """All models, each with its size and quality as its report says."""
    request[CONTEXT].client = request.app[GUARD].client(request)
    rows = await asyncio.gather(*(_row(name, slot, request.app) for name, slot in request.app[POOL].named.items()))
    return web.json_response({"object": "list", "data": rows})


async def model(request: web.Request) -> web.Response:
    """One of them."""
    request[CONTEXT].client = request.app[GUARD].client(request)
    name = request.match_info["name"]
    return web.json_response(await _row(name, request.app[POOL].slot(name), request.app))


async def _row(name: str, slot: Slot, app: web.Application) -> dict[str, Any]:
    offer, created = slot.offer, app[CREATED]
    own = {"id": name, "object": "model", "created": created, "owned_by": "hubplugin", "state": slot.state.value}
    row = {**own, "max_model_len": offer.max_model_len, "tools": offer.takes_tools}
    adapter = next((one for one in offer.adapters if one.name == name), None)
    if adapter:
        return {**row, **adapter.facts(offer.name)}
    row |= offer.facts
    if offer.draft:
        running = slot.state is State.READY
        row["draft"] = offer.draft.facts(await _scraped(app[SESSIONS][offer.name]) if running else "")
    return row


async def measured(request: web.Request) -> web.Response:
    """vLLM's own measures of every running engine, each sample with its model, and those of the endpoint."""
    request[CONTEXT].client = request.app[GUARD].client(request)
    pool, sessions = request.app[POOL], request.app[SESSIONS]
    running = [name for name, slot in pool.slots.items() if slot.state is State.READY]
    texts = await asyncio.gather(*(_scraped(sessions[name]) for name in running))
    text = request.app[MEASURES].exposed(pool.slots.values(), dict(zip(running, texts, strict=True)))
    return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _scraped(session: aiohttp.ClientSession) -> str:
    try:
        async with session.get("http://engine/metrics", timeout=aiohttp.ClientTimeout(total=5)) as answer:
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError):
        return ""


async def asked(request: web.Request) -> web.StreamResponse:
    """A request for a model: admitted, held to the limits, passed on."""
    guard, pool = request.app[GUARD], request.app[POOL]
    context = request[CONTEXT]
    context.client = guard.client(request)
    with guard.admitted(context.client):
        body = await request.read()
        content = parsed(body)
        name = named(content, list(pool.slots))
        slot = pool.slot(name)
        context.model = name
        refuse_tools(content, slot.offer)
        refuse_scoring(content, slot.offer)
        if limit_tokens(content, request.path, guard.limits.tokens):
            body = json.dumps(content).encode()
        for _ in range(TRIES):
            async with pool.using(slot.offer.name) as used:
                engine = used.engine
                try:
                    session = request.app[SESSIONS][slot.offer.name]
                    return await forwarding.forward(session, request, f"/v1/{request.match_info['path']}", body)
                except forwarding.EngineLost:
                    lost = engine is used.engine
            if lost:
                await pool.bury(slot)
        raise Refused(503, f"The engine of {slot.offer.name} ended before it answered", "engine_lost", after=5)


def parsed(body: bytes) -> dict[str, Any]:
    """A request's JSON. Raises Refused where it is no object."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON: {error}"[:200], "invalid_json") from None
    if not isinstance(content, dict):
        raise Refused(400, "The body is no JSON object", "invalid_json")
    return content


def refuse_tools(content: dict[str, Any], offer: Offer) -> None:
    """Raise Refused where a request offers tools to a model whose chat template has no place for them."""
    if content.get("tools") and content.get("tool_choice") != "none" and not offer.takes_tools:
        message = (
            f"{offer.name} takes no tools: its chat template has no place for them that vLLM could read calls from"
        )
        raise Refused(400, message, "tools_not_supported", param="tools")


def refuse_scoring(content: dict[str, Any], offer: Offer) -> None:
    """Raise Refused where a request asks an engine with adapters for log-probabilities of its prompt, which vLLM 0.32
    does not bear (vllm-project/vllm#16668)."""
    echoed = content.get("echo") and any(content.get(key) is not None for key in ("logprobs", "top_logprobs"))
    if offer.adapters and (echoed or content.get("prompt_logprobs") is not None):
        message = "An engine with adapters gives no log-probabilities of a prompt"
        raise Refused(400, message, "prompt_logprobs_not_supported", param="prompt_logprobs")


def named(content: dict[str, Any], known: list[str]) -> str:
    """The model that a request names; the only one where it names none. Raises Refused."""
    name = content.get("model")
    if name is None and len(known) == 1:
        return known[0]
    if not isinstance(name, str):
        raise Refused(400, f"Name a model: {', '.join(known)}", "model_missing", param="model")
    return name
