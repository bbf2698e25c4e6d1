"""What each idea of the engine is worth: each switched off, or on, alone, at 4, 3 and 2 bits, on the docs model.

    python bench/ablation.py            # about 20 minutes on two cores; what is measured already is kept
    python bench/ablation.py --page     # only writes docs/ablation.md from bench/results/ablation/docs.json

Calibrated and measured on the model's own samples (different seeds), or with --calibration and --held-out on texts.
"""

import argparse
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy
import torch
from models import DOCS, HELD_OUT, tokens

from hubplugin import report
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress import export
from hubplugin.compress.blocks import blockwise
from hubplugin.evaluation import quality_metrics
from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import computing_dtype
from hubplugin.plan import planner

HERE = Path(__file__).parent
WORK, RESULTS = HERE / ".work", HERE / "results" / "ablation" / "docs.json"
PAGE = HERE.parent / "docs" / "ablation.md"
SEQUENCES, SEEDS = 64, (0, 1, 2)
CHANGES: dict[str, dict[str, Any]] = {
    "default settings": {},
    "without corrected targets": {"qep": False},
    "without signed scales": {"signed_scales": False},
    "without clip search": {"clip_search": False},
    "without activation order": {"act_order": False},
    "without any of these": {"qep": False, "signed_scales": False, "clip_search": False, "act_order": False},
    "and scales refitted": {"scale_refit": True},
    "and one pass of descent": {"descent": 1},
    "and two passes": {"descent": 2},
    "and two passes, each with a refit": {"descent": 2, "scale_refit": True},
}
GRIDS = ((4, 128), (3, 128), (2, 32))


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--held-out", type=Path)
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"runs": []}
    if not options.page:
        measure(found, options.calibration, options.held_out)
    PAGE.write_text(render(found), encoding="utf-8")
    print(PAGE)


def measure(found: dict[str, Any], calibration: Path | None, held_out: Path | None) -> None:
    """Fill in the runs that are missing, one file after each."""
    row = families.FAMILIES["llama"]
    path = tokens("docs", WORK, SEQUENCES, HELD_OUT, held_out)
    described = report.Tokens.model_validate_json(path.with_suffix(".json").read_text("utf-8"))
    base = quality_metrics.reference(DOCS, row, torch.from_numpy(numpy.load(path)), described)
    found["held_out"], found["base"] = described.model_dump(), base.quality.perplexity
    done = {(run["bits"], run["group_size"], run["seed"], run["name"]) for run in found["runs"]}
    for seed in SEEDS:
        ids = tokens("docs", WORK, SEQUENCES, seed, calibration)
        for bits, group in GRIDS:
            for name, changes in CHANGES.items():
                if (bits, group, seed, name) in done:
                    continue
                step = {"method": "gptq", "bits": bits, "group_size": group, **changes}
                quality = quality_metrics.measure(make(step, ids), row, base, kl=True).variant
                run = {"bits": bits, "group_size": group, "seed": seed, "name": name, **quality.model_dump()}
                found["runs"].append(run)
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                part = RESULTS.with_suffix(".part")
                part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                os.replace(part, RESULTS)
                print(f"W{bits} g{group} seed {seed} | {name} | KL {quality.mean_kl:.4f}", flush=True)


def make(step: dict[str, Any], ids: Path) -> Path:
    """A folder with the model quantized by one step on the given ids."""
    calibration = torch.from_numpy(numpy.load(ids))
    out = WORK / "ablation"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    document = out.with_suffix(".yaml")
    source = {"self": True, "samples": calibration.shape[0], "sequence_length": calibration.shape[1]}
    written = {"model": str(DOCS.resolve()), "calibrate": source, "variants": {"variant": [step]}}
    document.write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
    loaded = loading.load(document)
    peek = snapshots.peek(loaded.manifest.model, loaded.folder)
    variant = planner.make(loaded, peek.config, peek.tensors).variants[0]
    row = families.match(peek.config, str(DOCS))
    model = Model(DenseView(DOCS), peek.config, row, computing_dtype(torch.bfloat16))
    target = export.Folder(out, DOCS, variant, row)
    for block in blockwise.blocks(model, blockwise.Calibration(calibration), variant, torch.bfloat16):
        target.add(block)
    target.finish()
    return out


def render(found: dict[str, Any]) -> str:
    """The page, from what was measured alone."""
    lines = [
        "# What each idea is worth",
        "",
        "Made by `python bench/ablation.py`; do not edit. The 12M model that ships with hubplugin, "
        f"{SEQUENCES} x 512 calibration tokens; medians over {len({run['seed'] for run in found['runs']})} seeds of "
        "these, least and most in brackets. KL against the base in nats per token, on "
        f"{found['held_out']['sequences']} x {found['held_out']['tokens_per_sequence']} held-out tokens "
        f"(source: {found['held_out']['source']}; base perplexity {found['base']:.3f}).",
        "",
    ]
    for bits, group in GRIDS:
        rows = [run for run in found["runs"] if (run["bits"], run["group_size"]) == (bits, group)]
        if not rows:
            continue
        lines += [f"## {bits} bits, groups of {group}", ""]
        lines += ["| | mean KL | of the default's | p99 KL | perplexity |", "|---|---:|---:|---:|---:|"]
        default = _median(rows, "default settings", "mean_kl")
        for name in CHANGES:
            kl = [run["mean_kl"] for run in rows if run["name"] == name]
            if kl:
                cells = f"{statistics.median(kl):.4f} ({min(kl):.4f} to {max(kl):.4f})"
                p99, perplexity = (_median(rows, name, key) for key in ("p99_kl", "perplexity"))
                lines.append(
                    f"| {name} | {cells} | {statistics.median(kl) / default:.2f} | {p99:.3f} | {perplexity:.3f} |"
                )
        lines.append("")
    return "\n".join(lines)


def _median(rows: list[dict[str, Any]], name: str, key: str) -> float:
    return statistics.median(run[key] for run in rows if run["name"] == name)


if __name__ == "__main__":
    main()
