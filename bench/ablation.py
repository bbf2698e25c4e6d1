"""What each idea of the engine is worth: each switched off, or on, alone, at 4, 3 and 2 bits, on a trained model.

    python bench/ablation.py            # the docs model: about 20 minutes on two cores; what is measured is kept
    python bench/ablation.py --page     # only writes docs/ablation.md from bench/results/ablation
    python bench/ablation.py --model smollm2-moved --calibration a.txt --held-out b.txt --bits 4 3 --seeds 0 \\
        --only "default settings" "corrected on half of the tokens"

The docs model is calibrated and measured on its own samples (different seeds), or with --calibration and --held-out on
texts; a real model on texts.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import models
import numpy
import quantized
import torch
from cells import TRAINED
from models import HELD_OUT

from hubplugin import report
from hubplugin.evaluation import quality_metrics
from hubplugin.model.architectures import configs, families

HERE = Path(__file__).parent
WORK, RESULTS = HERE / ".work", HERE / "results" / "ablation"
PAGE = HERE.parent / "docs" / "ablation.md"
SEQUENCES, SEEDS = 64, (0, 1, 2)
DEFAULT = "default settings"
CHANGES: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "without corrected targets": {"qep": False},
    "without signed scales": {"signed_scales": False},
    "without clip search": {"clip_search": False},
    "without activation order": {"act_order": False},
    "without any of these": {"qep": False, "signed_scales": False, "clip_search": False, "act_order": False},
    "corrected on half of the tokens": {"qep_tokens": SEQUENCES * models.SEQUENCE // 2},
    "corrected on a quarter": {"qep_tokens": SEQUENCES * models.SEQUENCE // 4},
    "with five times the damping": {"damp": 0.05},
    "and scales refitted": {"scale_refit": True},
    "and one pass of descent": {"descent": 1},
    "and two passes": {"descent": 2},
    "and two passes, each with a refit": {"descent": 2, "scale_refit": True},
}
GRIDS = {"docs": ((4, 128), (3, 128), (2, 32))}
REAL_GRIDS = ((4, 64), (3, 64), (2, 64))  # 576 inputs have no whole groups of 128
NAMES = {
    "smollm2-moved": "SmolLM2-135M-Instruct, moved off the 4-bit grid on which it was published",
    "smollm2": "SmolLM2-135M-Instruct",
    "docs": "The 12M model that ships with hubplugin",
}
assert set(NAMES) == set(TRAINED)


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--model", choices=NAMES, default="docs")
    parser.add_argument("--calibration", type=Path, help="a text file")
    parser.add_argument("--held-out", type=Path, help="a text file")
    parser.add_argument("--bits", type=int, nargs="+", default=(4, 3, 2))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    options = parser.parse_args()
    if not options.page:
        measure(options)
    PAGE.write_text(render(results()), encoding="utf-8")
    print(PAGE)


def results() -> dict[str, dict[str, Any]]:
    """What was measured, by model, the real ones first."""
    files = {model: RESULTS / f"{model}.json" for model in NAMES}
    return {model: json.loads(file.read_text(encoding="utf-8")) for model, file in files.items() if file.exists()}


def measure(options: argparse.Namespace) -> None:
    """Fill in the runs that are missing, one file after each."""
    model, found = options.model, results().get(options.model, {"runs": []})
    base_folder, file = models.base(model, WORK), RESULTS / f"{model}.json"
    row = families.match(configs.read_config(base_folder, model), model)
    path = models.tokens(model, WORK, SEQUENCES, HELD_OUT, options.held_out)
    described = report.Tokens.model_validate_json(path.with_suffix(".json").read_text("utf-8"))
    base = quality_metrics.reference(base_folder, row, torch.from_numpy(numpy.load(path)), described)
    found["held_out"], found["base"] = described.model_dump(), base.quality.perplexity
    done = {(run["bits"], run["group_size"], run["seed"], run["name"]) for run in found["runs"]}
    grids = [grid for grid in GRIDS.get(model, REAL_GRIDS) if grid[0] in options.bits]
    for seed, (bits, group), name in itertools.product(options.seeds, grids, options.only):
        if (bits, group, seed, name) in done:
            continue
        ids = torch.from_numpy(numpy.load(models.tokens(model, WORK, SEQUENCES, seed, options.calibration)))
        step, begun = {"method": "gptq", "bits": bits, "group_size": group, **CHANGES[name]}, time.monotonic()
        folder = quantized.by(base_folder, WORK / "ablation", step, ids)
        seconds = round(time.monotonic() - begun, 1)
        quality = quality_metrics.measure(folder, row, base, kl=True).variant
        run = {"bits": bits, "group_size": group, "seed": seed, "name": name, "seconds": seconds}
        found["runs"].append({**run, **quality.model_dump()})
        RESULTS.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        os.replace(part, file)
        print(f"W{bits} g{group} seed {seed} | {name} | KL {quality.mean_kl:.4f} | {seconds:.0f} s", flush=True)


def render(found: dict[str, dict[str, Any]]) -> str:
    """The page, from what was measured alone."""
    lines = [
        "# What each idea is worth",
        "",
        f"Made by `python bench/ablation.py`; do not edit. {SEQUENCES} x 512 calibration tokens, medians over seeds of "
        "these, least and most in brackets where there are several. KL is against the base, in nats per token.",
        "",
    ]
    for model, measured in found.items():
        held_out = measured["held_out"]
        lines += [f"## {NAMES[model]}", ""]
        lines += [
            f"Measured on {held_out['sequences']} x {held_out['tokens_per_sequence']} held-out tokens (source: "
            f"{held_out['source']}), where the base has a perplexity of {measured['base']:.3f}.",
            "",
        ]
        for bits, group in GRIDS.get(model, REAL_GRIDS):
            lines += _table(bits, group, measured["runs"])
    return "\n".join(lines)


def _table(bits: int, group: int, runs: list[dict[str, Any]]) -> list[str]:
    """One grid's rows; none where nothing was measured, and no ratio where the default was not."""
    rows = [run for run in runs if (run["bits"], run["group_size"]) == (bits, group)]
    if not rows:
        return []
    lines = [f"### {bits} bits, groups of {group}", ""]
    lines += ["| | seeds | mean KL | of the default's | p99 KL | perplexity |", "|---|---:|---:|---:|---:|---:|"]
    default = {run["seed"]: run["mean_kl"] for run in rows if run["name"] == DEFAULT}
    for name in CHANGES:
        some = [run for run in rows if run["name"] == name]
        if not some:
            continue
        kl = [run["mean_kl"] for run in some]
        spread = f" ({min(kl):.4f} to {max(kl):.4f})" if len(kl) > 1 else ""
        ratios = [run["mean_kl"] / default[run["seed"]] for run in some if run["seed"] in default]
        cells = [f"{statistics.median(kl):.4f}{spread}", f"{statistics.median(ratios):.2f}" if ratios else "-"]
        cells += [f"{_median(some, 'p99_kl'):.3f}", f"{_median(some, 'perplexity'):.3f}"]
        lines.append(f"| {name} | {len(some)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _median(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in rows)


if __name__ == "__main__":
    main()
