"""hubplugin's side of the pruning benchmark: a table of steps, a manifest written from them, `hubplugin run` on it.

What a variant will keep is asked of the plan, before anything runs: no rival is made to keep less.
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

from hubplugin import hub, manifest, plan

Step = dict[str, Any]
INT8, INT4 = {"method": "gptq", "bits": 8, "group_size": 64}, {"method": "gptq", "bits": 4, "group_size": 64}
WITH_RATIO = "ratio" in manifest.Prune.model_fields  # before that key a share of the FFN channels had to say it
WITH_LAYOUT = "layout" in manifest.Prune.model_fields


def prune(base: Path, ratio: float, **more: Any) -> Step:
    """The step that removes a share of the weights of all linears inside the blocks."""
    if WITH_RATIO:
        return {"method": "prune", "ratio": ratio, **more}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    hidden, ffn, heads = config["hidden_size"], 3 * config["intermediate_size"], config["num_attention_heads"]
    attention = 2 * config.get("head_dim", hidden // heads) * (heads + config["num_key_value_heads"])
    return {"method": "prune", "ffn": round(ratio * (ffn + attention) / ffn, 6), **more}


# name -> steps for a base and a ratio
PRUNED: dict[str, Callable[[Path, float], list[Step]]] = {
    "ours": lambda base, ratio: [prune(base, ratio)],
    **({"ours-per-layer": lambda base, ratio: [prune(base, ratio, layout="per-layer")]} if WITH_LAYOUT else {}),
}
# for the plot of bytes alone
PRUNED_QUANTIZED: dict[str, Callable[[Path, float], list[Step]]] = {
    "ours-int4": lambda base, ratio: [prune(base, ratio), INT4],
}
QUANTIZED: dict[str, list[Step]] = {"int8": [INT8], "int4": [INT4]}


def steps(name: str, base: Path, ratio: float) -> list[Step]:
    """Of a variant by its name in one of the tables."""
    return QUANTIZED[name] if name in QUANTIZED else {**PRUNED, **PRUNED_QUANTIZED}[name](base, ratio)


def write(path: Path, base: Path, calibration: dict[str, Any], variants: dict[str, list[Step]]) -> Path:
    """A manifest of these variants."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"model": str(base.resolve()), "calibrate": calibration, "variants": variants}
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")  # JSON is YAML
    return path


def least(base: Path, ratio: float, work: Path) -> int:
    """Weights that every rival may keep at least: of `ratio` to the letter, or more where a variant of ours does."""
    made = _planned(base, {name: make(base, ratio) for name, make in PRUNED.items()}, work)
    asked = math.ceil(round(made.linear_parameters * (1 - ratio), 6))
    return max(asked, *(variant.linear_parameters for variant in made.variants))


def dense(base: Path, work: Path) -> plan.Plan:
    """The plan of a base, for its own counts."""
    return _planned(base, QUANTIZED, work)


def _planned(base: Path, variants: dict[str, list[Step]], work: Path) -> plan.Plan:
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        document = manifest.load(write(Path(folder) / "plan.yaml", base, {"self": True, "tokens": 16}, variants))
    peek = hub.peek(document.manifest.model, document.folder)
    return plan.make(document, peek.config, peek.tensors)


def run(path: Path, out: Path, log: Path) -> None:
    """`hubplugin run` on a manifest, in a process of its own; raises RuntimeError with its last line."""
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "hubplugin", "run", str(path), "--out", str(out)]
    with log.open("wb") as sink:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, check=False)
    if done.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RuntimeError(f"hubplugin run ended with {done.returncode}: {said[-1] if said else 'it said nothing'}")
