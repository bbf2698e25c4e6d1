"""What a gateway adds between a client and an engine: time to the first token, and tokens per second; on loopback.

    python bench/environments.py litellm
    python bench/gateways.py [--rounds 5] [--streams 1 32] [--quiet 0.05] [--gateways NAME ...]

The engine is a stand-in that streams chunks of a chat completion (gateway_engine.py), one token each 20 ms and as fast
as they can be written. It is asked directly and through each gateway, in an order that turns from round to round.
Streams begin spread over the time of one answer, so that arrivals do not queue behind each other. Results go to
bench/results/gateways. `others` is the share of all cores that other processes used.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import environments
import httpx
import measure
import psutil

from hubplugin import disk
from hubplugin.progress import progress
from serve import engine, ports

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gateways"
ALONE, OURS, PLAIN, LITELLM = "the engine alone", "hubplugin serve", "starlette + httpx", "LiteLLM"
GATEWAYS = ALONE, OURS, PLAIN, LITELLM
KEY = "sk-" + secrets.token_hex(32)  # LiteLLM starts with no weaker one
PATH = "/v1/chat/completions"
WAIT = 180  # seconds for a start
LOOK = 2.0  # seconds for a look at whether the machine is quiet


@dataclass(frozen=True)
class Load:
    """What is asked."""

    name: str
    pace: float  # seconds between two tokens; 0: none
    tokens: int  # of one answer
    requests: dict[int, int]  # streams -> requests of each


LOADS = (Load("20 ms per token", 0.02, 64, {1: 8, 32: 4}), Load("full speed", 0.0, 128, {1: 16, 32: 2}))


def main() -> None:
    """Start all, ask in turns, write after every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32])
    parser.add_argument(
        "--quiet", type=float, default=0.05, help="Share of all cores in use below which a round begins."
    )
    parser.add_argument("--patience", type=float, default=120, help="Seconds to wait for that, at most.")
    parser.add_argument("--gateways", nargs="+", choices=GATEWAYS, default=list(GATEWAYS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which ends the servers too
    names = [ALONE, *(name for name in options.gateways if name != ALONE)]
    found: list[dict[str, Any]] = []
    with _all(names) as servers:
        for name, server in servers.items():
            asyncio.run(_asked(server.url, LOADS[0], 4, 2))  # what is made at the first request
            progress(f"{name} answers")
        for number in range(options.rounds):
            _quiet(options.quiet, options.patience)
            turned = names[number % len(names) :] + names[: number % len(names)]
            for load in LOADS:
                for streams in options.streams:
                    for name in turned:
                        said = _measured(servers, servers[name].url, load, streams)
                        progress(f"round {number + 1} | {load.name} | {streams} | {name} | {said}")
                        found.append({"round": number, "load": load.name, "streams": streams, "gateway": name, **said})
            _write(options.out, found)


@dataclass(frozen=True)
class Server:
    """One that answers at a URL."""

    url: str
    process: psutil.Process


@contextlib.contextmanager
def _all(names: list[str]) -> Iterator[dict[str, Server]]:
    """The engine, and every gateway in front of it; ours starts an engine of its own on a Unix domain socket."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        numbers = {name: ports.choose(ports.LOOPBACK, None) for name in names}
        alone = ports.url(ports.LOOPBACK, numbers[ALONE])
        yield {
            name: stack.enter_context(_server(_command(name, numbers[name], alone, folder), numbers[name]))
            for name in names
        }


def _command(name: str, port: int, alone: str, folder: Path) -> list[str]:
    own = [sys.executable, str(HERE / f"gateway_{ {ALONE: 'engine', OURS: 'ours', PLAIN: 'plain'}.get(name) }.py")]
    if name != LITELLM:
        return [*own, str(port), *([alone] if name == PLAIN else [])]
    if not environments.ready("litellm"):
        raise SystemExit("run: python bench/environments.py litellm")
    known = {
        "model_name": "model",
        "litellm_params": {"model": "openai/model", "api_base": f"{alone}/v1", "api_key": KEY},
    }
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [known], "litellm_settings": {"telemetry": False}}))
    program = environments.python("litellm").with_name("litellm")
    return [str(program), "--config", str(config), "--host", ports.LOOPBACK, "--port", str(port)]


@contextlib.contextmanager
def _server(command: list[str], port: int) -> Iterator[Server]:
    keys = {"VLLM_API_KEY": KEY, "LITELLM_MASTER_KEY": KEY}
    environment = {**os.environ, **keys, "PYTHONPATH": str(HERE.parent), "LITELLM_LOG": "ERROR"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        url = ports.url(ports.LOOPBACK, port)
        try:
            _wait(url, process, log)
            yield Server(url, psutil.Process(process.pid))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            engine.kill_session(process.pid)
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    """Until a request is answered."""
    deadline = time.monotonic() + WAIT
    headers = {"Authorization": f"Bearer {KEY}"}
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if (
                httpx.post(url + PATH, json=_body(LOADS[1]), headers=headers, timeout=30, trust_env=False).status_code
                == 200
            ):
                return
        time.sleep(0.5)
    log.seek(0)
    raise SystemExit(f"{log.read().decode(errors='replace')[-3000:]}\n{url} did not get ready: status {process.poll()}")


def _quiet(limit: float, patience: float) -> None:
    """Wait until nobody uses the machine, or for so long; what others used is in the results either way. The load
    average would take minutes to forget the round before."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        busy = measure.busy_seconds()
        time.sleep(LOOK)
        if (measure.busy_seconds() - busy) / LOOK / (psutil.cpu_count() or 1) < limit:
            return


def _body(load: Load) -> dict[str, Any]:
    content = {"model": "model", "stream": True, "messages": [{"role": "user", "content": "How is the weather? " * 20}]}
    return {**content, "max_tokens": load.tokens, "seed": round(load.pace * 1e6)}


def _measured(servers: dict[str, Server], url: str, load: Load, streams: int) -> dict[str, float]:
    busy, own, begun = measure.busy_seconds(), _own(servers), time.monotonic()
    firsts, seconds, tokens = asyncio.run(_asked(url, load, streams, load.requests.get(streams, 4)))
    wall = time.monotonic() - begun
    others = (measure.busy_seconds() - busy - (_own(servers) - own)) / wall / (psutil.cpu_count() or 1)
    return {
        "first_token": round(median(firsts), 6),
        "first_token_p90": round(quantiles(firsts, n=10)[-1], 6),
        "tokens_per_second": round(tokens / seconds, 2),
        "others": round(max(0.0, others), 3),
    }


def _own(servers: dict[str, Server]) -> float:
    """CPU seconds of this process and of all servers."""
    total = 0.0
    for root in (psutil.Process(), *(server.process for server in servers.values())):
        tree = [root] if root.pid == os.getpid() else [root, *root.children(recursive=True)]
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
    return total


async def _asked(url: str, load: Load, streams: int, each: int) -> tuple[list[float], float, int]:
    """Seconds to the first token of every request, seconds in all, tokens in all."""
    body = json.dumps(_body(load)).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    firsts: list[float] = []
    counts: list[int] = []

    async def stream(session: aiohttp.ClientSession, number: int) -> None:
        await asyncio.sleep(number * load.pace * load.tokens / streams)
        for _ in range(each):
            first, tokens = await _one(session, url + PATH, body, headers)
            firsts.append(first)
            counts.append(tokens)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), read_bufsize=2**20) as session:
        begun = time.monotonic()
        await asyncio.gather(*(stream(session, number) for number in range(streams)))
        seconds = time.monotonic() - begun
    if set(counts) != {load.tokens}:
        raise SystemExit(f"{url} answered {sorted(set(counts))} tokens where {load.tokens} were asked for")
    return firsts, seconds, sum(counts)


async def _one(session: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str]) -> tuple[float, int]:
    """Seconds to the first token of a request, and how many tokens came."""
    begun, first, said = time.monotonic(), 0.0, []
    async with session.post(url, data=body, headers=headers) as answer:
        if answer.status != 200:
            raise SystemExit(f"{url}: {answer.status} {await answer.text()}")
        async for piece in answer.content.iter_any():
            if not first and b" word" in piece:
                first = time.monotonic() - begun
            said.append(piece)
    return first, b"".join(said).count(b'" word')


def _write(out: Path, found: list[dict[str, Any]]) -> None:
    lock = (HERE / "lock" / "litellm.txt").read_text(encoding="utf-8").splitlines()
    packages = {name: metadata.version(name) for name in ("aiohttp", "starlette", "httpx", "uvicorn")}
    record = {
        "machine": measure.machine(),
        "python": platform.python_version(),
        "packages": packages | {"litellm": next(line.split("==")[1] for line in lock if line.startswith("litellm=="))},
        "date": datetime.now(UTC).date().isoformat(),
        "loads": [asdict(load) for load in LOADS],
        "measured": found,
    }
    disk.write_atomically(out / "loopback.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
