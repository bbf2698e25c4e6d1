"""How fast `hubplugin serve` answers beside vLLM as a user would start it: vLLM's own load, one machine.

    python bench/serving.py FOLDER [FOLDER ...] [--streams 1 8 32 64] [--rounds 3] [--settings NAME ...]

Every setting of SETTINGS serves every folder once a round, in an order that turns from round to round; each start is
timed until requests are answered. Prompts are random token ids of one length, answers of one length, greedy, no end of
text, the same for all. Results go to bench/results/serving, a file per model.
`others` is the share of all cores that other processes used meanwhile.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import measure
import psutil

from hubplugin import disk
from hubplugin.progress import progress
from serve import engine, ports, vllm_settings

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serving"
NAME = "model"
STOCK = "vllm.entrypoints.launchers.api_server.entry"
WAIT = 900  # seconds for a start
ROOM = {"VLLM_CPU_KVCACHE_SPACE": "4"}  # GiB; vLLM's own share of the memory, 92 %, is refused where 8 % are in use
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **ROOM}


@dataclass(frozen=True)
class Setting:
    """A way to serve a folder."""

    ours: bool = False  # by `hubplugin serve`
    options: tuple[str, ...] = ()  # of vLLM
    environment: tuple[tuple[str, str], ...] = ()


SETTINGS = {
    "hubplugin serve": Setting(ours=True),
    "vllm serve": Setting(environment=tuple(ROOM.items())),
    "vllm serve, eager": Setting(options=("--enforce-eager",), environment=tuple(ROOM.items())),
    "vllm serve, eager, one process": Setting(options=("--enforce-eager",), environment=tuple(ONE_PROCESS.items())),
    "vllm serve, eager, one process, 32 sequences": Setting(
        options=("--enforce-eager", "--max-num-seqs", "32", "--max-num-batched-tokens", "512"),
        environment=tuple(ONE_PROCESS.items()),
    ),
    "vllm serve, eager, one process, float32": Setting(
        options=("--enforce-eager", "--dtype", "float32"), environment=tuple(ONE_PROCESS.items())
    ),
}


@dataclass(frozen=True)
class Load:
    """What is asked at each number of streams."""

    prompt: int  # tokens
    answer: int  # tokens
    each: int  # requests per stream
    length: int  # --max-model-len


def main() -> None:
    """Serve, ask, write after every start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--prompt", type=int, default=128, help="Tokens.")
    parser.add_argument("--answer", type=int, default=64, help="Tokens.")
    parser.add_argument("--each", type=int, default=4, help="Requests per stream.")
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--ours", nargs="*", default=[], help="Options of vLLM for `hubplugin serve`, without --.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = Load(options.prompt, options.answer, options.each, options.max_model_len)
    options.out.mkdir(parents=True, exist_ok=True)
    for folder in options.folders:
        found: list[dict[str, Any]] = []
        for number in range(options.rounds):
            turned = (
                options.settings[number % len(options.settings) :] + options.settings[: number % len(options.settings)]
            )
            for name in turned:
                progress(f"{folder.name} | round {number + 1} of {options.rounds} | {name}")
                extra = tuple(f"--{word}" if "=" in word else word for word in options.ours)
                found.append({"setting": name, **served(folder, SETTINGS[name], load, options.streams, extra)})
                _write(options.out, folder, load, found)


def _write(out: Path, folder: Path, load: Load, found: list[dict[str, Any]]) -> None:
    machine = measure.machine()
    record = {
        "model": folder.name,
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "machine": machine,
        "vllm": vllm_settings.version(),
        "date": datetime.now(UTC).date().isoformat(),
        "load": vars(load),
        "starts": found,
    }
    disk.write_atomically(out / f"{folder.name}.json", json.dumps(record, indent=1) + "\n")


def served(
    folder: Path, setting: Setting, load: Load, streams: Sequence[int], extra: tuple[str, ...] = ()
) -> dict[str, Any]:
    """One start, and what it took to answer every number of streams."""
    begun = time.monotonic()
    with _server(folder, setting, load, extra) as (url, process):
        ready = time.monotonic() - begun
        progress(f"ready in {ready:.1f} s")
        answered = []
        for said in _asked(url, folder, load, (streams[0], *streams), process):
            speed, first = said["tokens_per_second"], said["first_token"]
            progress(f"{said['streams']} streams: {speed:.1f} tokens/s, first {first:.2f} s")
            answered.append(said)
        # the first number of streams once more: products of a new shape choose their kernels
        return {"ready_seconds": round(ready, 1), "answered": answered[1:]}


@contextlib.contextmanager
def _server(folder: Path, setting: Setting, load: Load, extra: tuple[str, ...]) -> Iterator[tuple[str, psutil.Process]]:
    port = ports.choose(ports.LOOPBACK, None)
    shared = ["--max-model-len", str(load.length)]
    if setting.ours:
        words = [sys.executable, "-m", "hubplugin", "--quiet", "serve", str(folder), "--name", NAME, *shared]
        words += ["--port", str(port), "--", "--no-enable-prefix-caching", *extra]
    else:
        words = [sys.executable, "-m", STOCK, "--model", str(folder), "--served-model-name", NAME, *shared]
        words += ["--host", ports.LOOPBACK, "--port", str(port), "--no-enable-prefix-caching", *setting.options]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **dict(setting.environment)}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(words, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    url = f"http://{ports.LOOPBACK}:{port}"
    try:
        _wait(url, process, "/v1/models" if setting.ours else "/health", setting.ours)
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        engine.kill_session(process.pid)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], path: str, ours: bool) -> None:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError, ValueError, LookupError):
            answer = httpx.get(url + path, timeout=5, trust_env=False)
            if answer.status_code == 200 and (not ours or answer.json()["data"][0]["state"] == "ready"):
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} did not get ready: status {process.poll()}")


def _asked(
    url: str, folder: Path, load: Load, streams: Sequence[int], server: psutil.Process
) -> Iterator[dict[str, float]]:
    """By vLLM's own load generator, one number of streams after another."""
    words = ["--base-url", url, "--model", NAME, "--tokenizer", str(folder), "--dataset-name", "random"]
    words += ["--random-input-len", str(load.prompt), "--random-output-len", str(load.answer), "--ignore-eos"]
    words += ["--temperature", "0", "--disable-tqdm", "--seed", "0", "--ready-check-timeout-sec", "0"]
    command = [sys.executable, str(HERE / "serving_load.py"), *words, "--each", str(load.each), "--streams"]
    with tempfile.TemporaryFile("w+") as log:
        asking = subprocess.Popen([*command, *map(str, streams)], stdout=subprocess.PIPE, stderr=log, text=True)
        assert asking.stdout is not None
        asking.stdout.readline()  # it has imported vLLM
        for count in streams:
            busy, own, at = measure.busy_seconds(), _own(server, asking.pid), time.monotonic()
            found = json.loads(asking.stdout.readline() or "{}")
            seconds = time.monotonic() - at
            used = measure.busy_seconds() - busy - (_own(server, asking.pid) - own)
            expected = load.each * count, load.each * count * load.answer
            if (found.get("completed"), found.get("total_output_tokens")) != expected:
                log.seek(0)
                raise SystemExit(
                    f"{log.read()[-3000:]}\n{found.get('completed')} of {expected[0]} requests were answered"
                )
            yield {
                "streams": count,
                "others": round(max(0.0, used / seconds / (psutil.cpu_count() or 1)), 3),
                "tokens_per_second": found["output_throughput"],
                "first_token": found["mean_ttft_ms"] / 1e3,
                "first_token_p99": found["p99_ttft_ms"] / 1e3,
                "per_token": found["mean_tpot_ms"] / 1e3,
            }
        asking.wait()


def _own(server: psutil.Process, asking: int) -> float:
    """CPU seconds of the server's processes, of this one and of the load generator."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(), psutil.Process(asking), server, *server.children(recursive=True)):
            times = process.cpu_times()
            total += times.user + times.system
    return total


if __name__ == "__main__":
    main()
