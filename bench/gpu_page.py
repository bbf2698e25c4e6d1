"""Writes docs/bench-gpu.md from bench/results/gpu/llama-3-8b.json, and from nothing else. It measures nothing."""

import json
import os
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "gpu" / "llama-3-8b.json"
PAGE = Path(__file__).parents[1] / "docs" / "bench-gpu.md"
# the ceiling that a stage's work is held against
CEILING = {
    "weights to the device": "copy to the device",
    "forward": "bf16 product",
    "second moments": "bf16 product",
    "cross moments": "bf16 product",
    "factor": "fp32 product",
    "sweep": "fp32 product",
    "loss": "bf16 product",
    "codes to the host": "copy to the host",
}
HEAD = """# The benchmark on a GPU

*Written by `python bench/gpu.py` from `bench/results/gpu`; do not edit.*

A Llama-3-8B shape (hidden 4096, FFN 14336, 32 layers, 32 heads, 8 KV heads) with random weights, 128 x 2048 random
tokens, 4 bits in groups of 128: from weights in pinned host memory to packed tensors in host memory; as plain GPTQ
(with clip search and activation order), and with all that a manifest does by default. Stages are told apart by CUDA
events on the device's own timeline and add up to the whole. **Work** is what a stage cannot do without;
the ceilings are products of 8192 x 8192 and copies of 1 GiB in the same process.
"""
NOT_YET = """Not yet measured on a GPU. Whoever has one with 80 GB runs

    python bench/environments.py llmcompressor    # optional, to have it measured beside
    python bench/gpu.py

and commits `bench/results/gpu` and this page. The kernels are held against the reference in Triton's interpreter
(`tests/test_sweep_gpu.py`, `tests/test_moments_gpu.py`; `pytest -m gpu` does the same on a device), and the script
itself runs on a toy without one: `python bench/gpu.py --device cpu --tiny`.
"""


def table(found: dict[str, Any]) -> str:
    """Every run, stage by stage; the ceilings; llm-compressor beside."""
    lines = [f"{found['device']}, torch {found['versions']['torch']}, {found['created'][:10]}."]
    for name, run in found["runs"].items():
        whole = sum(run["seconds"].values())
        lines += [
            "",
            f"## {name[0].upper()}{name[1:]}: {run['wall']:.1f} s",
            "",
            f"{_peak(run)}Mean loss {run['mean_loss']:.4f}; {run['fallbacks']} fallbacks.",
            "",
            "| stage | seconds | share | work | rate | of the ceiling |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for stage, seconds in run["seconds"].items():
            cells = [stage, f"{seconds:.2f}", f"{seconds / whole:.0%}", *_rate(found, run, stage, seconds)]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Ceilings", "", "| | measured |", "|---|---:|"]
    lines += [f"| {name} | {_amount(name, rate)}/s |" for name, rate in found["ceilings"].items()]
    beside = found.get("llmcompressor")
    if beside:
        wall = beside["wall"]["quantize"]
        ratios = " and ".join(f"{wall / run['wall']:.1f} times {name}" for name, run in found["runs"].items())
        lines += ["", "## llm-compressor", "", f"{beside['version']}, the same weights and ids, its `oneshot` alone:"]
        lines += [f"{wall:.1f} s, {ratios}."]
    return "\n".join(lines)


def _peak(run: dict[str, Any]) -> str:
    peak = run["peak_device_bytes"]
    return f"{peak / 1e9:.1f} GB of device memory at most. " if peak else ""


def _rate(found: dict[str, Any], run: dict[str, Any], stage: str, seconds: float) -> list[str]:
    if stage not in CEILING or not seconds:
        return ["", "", ""]
    work, ceiling = run["work"][stage], CEILING[stage]
    rate = work / seconds
    return [_amount(ceiling, work), f"{_amount(ceiling, rate)}/s", f"{rate / found['ceilings'][ceiling]:.0%}"]


def _amount(ceiling: str, value: float) -> str:
    """Copies move bytes, all else is floating-point operations."""
    if ceiling.startswith("copy"):
        return f"{value / 1e9:.1f} GB"
    teras = value / 1e12
    return f"{teras:,.0f} TFLOP" if teras >= 100 else f"{teras:.3g} TFLOP"


def page(found: dict[str, Any] | None) -> str:
    """The whole page; without a result it says so."""
    return f"{HEAD}\n{NOT_YET if found is None else table(found)}".rstrip() + "\n"


def result() -> dict[str, Any] | None:
    """What was measured last, if anything."""
    if not RESULT.exists():
        return None
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return found


def write() -> None:
    """Write the page from what was measured."""
    part = PAGE.with_suffix(".part")
    part.write_text(page(result()), encoding="utf-8")
    os.replace(part, PAGE)
