"""hubplugin's side of the pruning benchmark: a table of steps, a manifest written from them, `hubplugin run` on it.

Ours runs first: no rival is made to keep less than it kept.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.plan import draft, planner

Step = dict[str, Any]
INT8, INT4 = {"method": "gptq", "bits": 8, "group_size": 64}, {"method": "gptq", "bits": 4, "group_size": 64}


def prune(ratio: float, **more: Any) -> Step:
    """The step that removes a share of the weights of all linears inside the blocks."""
    return {"method": "prune", "ratio": ratio, **more}


# name -> steps for a ratio
PRUNED: dict[str, Callable[[float], list[Step]]] = {
    "ours": lambda ratio: [prune(ratio)],
    "ours-per-layer": lambda ratio: [prune(ratio, layout="per-layer")],
}
# for the plot of bytes alone
PRUNED_QUANTIZED: dict[str, Callable[[float], list[Step]]] = {
    "ours-int4": lambda ratio: [prune(ratio), INT4],
    "ours-per-layer-int4": lambda ratio: [prune(ratio, layout="per-layer"), INT4],
}
# trained afterwards, so not to be compared with what is done in one shot; each at one ratio, as it takes minutes
PRUNED_RECOVERED: dict[str, Callable[[float], list[Step]]] = {
    "ours-recovered": lambda ratio: [prune(ratio), {"method": "recover"}],
    "ours-per-layer-recovered": lambda ratio: [
        prune(ratio, layout="per-layer"),
        {"method": "recover", "blocks": 0, "distill": 2.5, "minutes": 40},
    ],
}
RECOVERED_RATIOS = {"ours-recovered": 0.3, "ours-per-layer-recovered": 0.2}
QUANTIZED: dict[str, list[Step]] = {"int8": [INT8], "int4": [INT4]}


def steps(name: str, ratio: float) -> list[Step]:
    """Of a variant by its name in one of the tables."""
    return QUANTIZED[name] if name in QUANTIZED else {**PRUNED, **PRUNED_RECOVERED, **PRUNED_QUANTIZED}[name](ratio)


def ratios(name: str, wanted: list[float]) -> list[float]:
    """Of those wanted, the ones that a variant is made at; what is only quantized has none of its own."""
    if name in RECOVERED_RATIOS:
        return [ratio for ratio in wanted if ratio == RECOVERED_RATIOS[name]]
    return wanted[:1] if name in QUANTIZED else wanted


def write(path: Path, base: Path, calibration: dict[str, Any], variants: dict[str, list[Step]]) -> Path:
    """A manifest of these variants."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"model": str(base.resolve()), "calibrate": calibration, "variants": variants}
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")  # JSON is YAML
    return path


def least(base: Path, ratio: float, work: Path, made: int) -> int:
    """Weights that a rival may keep at least: of `ratio` to the letter, or more where ours kept more.

    `made` are the weights that ours kept; the plan alone cannot know what measurements decide.
    """
    return max(math.ceil(round(dense(base, work).linear_parameters * (1 - ratio), 6)), made)


def dense(base: Path, work: Path) -> draft.Plan:
    """The plan of a base, for its own counts."""
    return _planned(base, QUANTIZED, work)


def _planned(base: Path, variants: dict[str, list[Step]], work: Path) -> draft.Plan:
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        document = loading.load(
            write(Path(folder) / "plan.yaml", base, {"self": True, "sequence_length": 16}, variants)
        )
    peek = snapshots.peek(document.manifest.model, document.folder)
    return planner.make(document, peek.config, peek.tensors)


def run(path: Path, out: Path, log: Path) -> None:
    """`hubplugin run` on a manifest, in a process of its own; raises RuntimeError with its last line."""
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "hubplugin", "run", str(path), "--out", str(out)]
    with log.open("wb") as sink:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, check=False)
    if done.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
        raise RuntimeError(f"hubplugin run ended with {done.returncode}: {said[-1] or 'it said nothing'}")
