"""`engine: gptqmodel`: AutoGPTQ's maintained successor makes the codes, everything around them stays ours.

The library runs in a process of its own (gptqmodel_worker.py) on the same calibration tokens; its codes and scales are
written by our exporter, so that evaluation, gate, card and serving see a folder like any other. It quantizes the dense
model as a whole and hands on no second moments: losses in our measure are not known here.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from hubplugin.checkpoint.encodings import Grid
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.compress import export
from hubplugin.compress.blocks.block_record import Block
from hubplugin.compress.gptqmodel import worker as worker
from hubplugin.errors import CompressError, PlanError
from hubplugin.limits import MICRO_TOKENS
from hubplugin.manifest.methods import grid_of
from hubplugin.manifest.steps.gptq import GPTQMODEL, GridQuantization
from hubplugin.model.architectures.families import Family
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress
from hubplugin.report import LinearResult

PACKAGE = "gptqmodel"
WORK = ".gptqmodel"  # inside the folder in the making, which a later run empties
PATIENCE = 5  # seconds the process has to end by itself when its lifeline is cut


@dataclass(frozen=True)
class Made:
    """What is known of a variant beside its folder."""

    results: list[LinearResult]
    samples: dict[str, Tensor]  # first rows of every linear, as gptqmodel dequantizes them
    peak: int  # bytes of its process at its highest point


def step_of(plan: VariantPlan) -> GridQuantization | None:
    """The step that gptqmodel is to run; None where this variant is all ours."""
    step = grid_of(plan.steps)
    return step if step and step.engine == PACKAGE else None


def packages(plan: VariantPlan) -> tuple[str, ...]:
    """Packages whose version belongs into this variant's report beside those of all variants."""
    return (PACKAGE,) if step_of(plan) else ()


def require(plans: Iterable[VariantPlan]) -> None:
    """Raise PlanError where a variant wants gptqmodel and the release this project was tried with is not installed."""
    wanting = next((plan.name for plan in plans if step_of(plan)), None)
    if wanting is None:
        return
    try:
        installed = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        installed = ""
    if installed != GPTQMODEL:
        what = f"gptqmodel {installed} is installed" if installed else "gptqmodel is not installed"
        raise PlanError(
            f"variants.{wanting}: engine",
            f"{what}, and this engine is gptqmodel {GPTQMODEL}",
            "run `make env-gptqmodel` in the checkout, or remove engine: gptqmodel",
        )


def compress(base: Path, folder: Path, ids: Tensor, plan: VariantPlan, family: Family) -> Made:
    """Quantize `base` on token ids [sequences, tokens] and write the variant's weights and configuration to `folder`.

    Raises CompressError where gptqmodel fails or returns other linears than the plan's; its log then stays in WORK.
    """
    step = step_of(plan)
    assert step is not None
    work = folder / WORK
    work.mkdir()
    blocks = list(_blocks(plan, family))
    settings = step.model_dump(include={"bits", "group_size", "act_order", "clip_search", "damp"})
    job = {
        "base": str(base.resolve()),
        "settings": settings,
        "blocks": [names for _, names in blocks],
        "batch": max(1, MICRO_TOKENS // ids.shape[1]),
    }
    (work / worker.JOB).write_text(json.dumps(job), encoding="utf-8")
    save_file({"ids": ids.contiguous()}, work / worker.TOKENS)
    _run(work, plan.name, len(blocks))
    result = json.loads((work / worker.RESULT).read_text(encoding="utf-8"))
    results = _results(result["rows"], plan, family)
    samples: dict[str, Tensor] = {}
    target = export.Folder(folder, base, plan, family)
    reader = Reader(base)
    for index, (prefix, names) in enumerate(blocks):
        block = _block(index, prefix, names, load_file(work / worker.block_file(index)), step, reader)
        target.add(block)
        samples |= block.samples
    target.finish()
    shutil.rmtree(work)
    return Made(results, samples, result["peak"])


def _blocks(plan: VariantPlan, family: Family) -> Iterator[tuple[str, list[str]]]:
    """Each block's prefix and the full names of its linears."""
    names, size = [linear.name for linear in plan.linears], len(family.linears())
    for index in range(len(names) // size):
        yield family.block.format(i=index), names[index * size : (index + 1) * size]


def _block(
    index: int, prefix: str, names: list[str], stored: dict[str, Tensor], step: GridQuantization, reader: Reader
) -> Block:
    """A block as our own engine would hand it to the exporter. Biases are the base's: gptqmodel leaves them alone."""
    block = Block(index, prefix, prefix)
    for name in names:
        codes, scales = stored[f"{name}.codes"], stored[f"{name}.scales"]
        group_size = codes.shape[1] // scales.shape[1]
        block.encodings[name] = Grid(codes, scales, bits=step.bits, group_size=group_size)
        block.samples[name] = stored[f"{name}.sample"]
        if f"{name}.bias" in reader:
            block.biases[name] = reader.get(f"{name}.bias")
    return block


def _results(rows: list[dict[str, Any]], plan: VariantPlan, family: Family) -> list[LinearResult]:
    """What gptqmodel reported, by linear. Its loss is a sum in its own unit and is not taken over, but for one thing:
    where it is text, it says what was done instead of GPTQ."""
    by_linear = {f"{family.block.format(i=row['block'])}.{row['linear']}": row for row in rows}
    wanted = [linear.name for linear in plan.linears]
    if by_linear.keys() != set(wanted):
        odd = sorted(by_linear.keys() ^ set(wanted))
        raise CompressError(
            f"variants.{plan.name}: engine",
            f"gptqmodel quantized other linears than planned, first {odd[0]}",
            "remove engine: gptqmodel",
        )
    return [
        LinearResult(
            name=name,
            method="gptq",
            loss=None,
            damp=by_linear[name]["damp"],
            fallback=_fallback(by_linear[name]["loss"]),
            dead_inputs=None,
            seconds=by_linear[name]["seconds"],
        )
        for name in wanted
    ]


def _fallback(loss: str) -> str | None:
    return f"gptqmodel's {loss}" if "fallback" in loss else None


def _run(work: Path, variant: str, blocks: int) -> None:
    """Run the worker to its end, with a line of progress per block."""
    begun = time.monotonic()
    progress(f"{variant} | gptqmodel {GPTQMODEL} starts")
    with _started(work) as process:
        assert process.stdout is not None
        for done, _ in enumerate(process.stdout, start=1):
            seconds = time.monotonic() - begun
            left = seconds / done * (blocks - done)
            progress(f"{variant} | block {done:02d}/{blocks} | gptqmodel | {seconds:.1f}s | eta {left:.0f}s")
        status = process.wait()
    log = work / worker.LOG
    if status or not (work / worker.RESULT).is_file():
        said = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        raise CompressError(
            f"variants.{variant}: engine",
            f"gptqmodel ended with status {status}: {last}",
            f"its log is {log}; our own engine needs no such process",
        )


@contextmanager
def _started(work: Path) -> Iterator[subprocess.Popen[str]]:
    """The worker, which lives no longer than this block, nor than this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", worker.__name__, str(work)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def environment() -> dict[str, str]:
    """No network for a model that lies here; and gptqmodel starts no thread pool with less than two workers."""
    workers = max(2, ((os.cpu_count() or 1) + 1) // 2)
    return {"GPTQMODEL_CPU_WORKERS": str(workers), **os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
