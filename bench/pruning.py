"""Structured pruning side by side: hubplugin and small references of other methods, same model, tokens and evaluation.

    python bench/pruning.py                             # everything that is not there yet, on the docs model
    python bench/pruning.py --methods flap ours --ratios 0.2 --force
    python bench/pruning.py --model smollm2-moved --calibration a.txt --held-out b.txt

Results lie in bench/results/pruning, or pruning_text where the docs model's tokens come from text files, or
pruning_real; one file per method and ratio.
A result counts as there while what it was made from is unchanged: token ids, steps, and the weights that rivals may
keep. Every rival runs with all settings of its table; the one with the lowest perplexity on the first held-out
sequences is its result, the others are told.
"""

import argparse
import json
import os
import re
import shutil
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import measure
import models
import numpy
import pruning_ours
import pruning_quality
import torch
from models import HELD_OUT, SEQUENCE
from pruning_ours import PRUNED, PRUNED_QUANTIZED, PRUNED_RECOVERED, QUANTIZED
from pruning_page import REAL, RESULTS, TEXT, twin
from pruning_rivals import RIVALS, parts
from pruning_rivals.calibration import Calibration
from safetensors import safe_open

from hubplugin import disk, report
from hubplugin.evaluation import quality_metrics
from hubplugin.model.architectures import configs, families
from hubplugin.progress import progress

HERE = Path(__file__).parent
WORK = HERE / ".work" / "pruning"
RATIOS = (0.1, 0.2, 0.3, 0.5)
SEQUENCES = 64
MORE, MORE_FROM_TEXT = 1024, 1300  # sequences that recovery trains on: sampling them takes time
MORE_ON_REAL = 530  # as many as WikiText-2's validation text has
TRIAL = 16  # held-out sequences on which a rival's settings are told apart
METHODS = (*PRUNED, *RIVALS, *PRUNED_RECOVERED, *PRUNED_QUANTIZED, *QUANTIZED)


@dataclass(frozen=True)
class Bench:
    """What all cells share."""

    base: Path
    work: Path
    results: Path
    family: families.Family
    reference: quality_metrics.Reference
    ids: torch.Tensor
    calibration: report.Tokens
    source: dict[str, Any]  # `calibrate:` of the manifests, which makes the same ids
    more: dict[str, Any]  # `data:` of recovery: more of the same kind, as every sequence helps

    @property
    def shared(self) -> dict[str, Any]:
        """What stands in every result."""
        counts = pruning_ours.dense(self.base, self.work)
        return {
            "calibration": self.calibration.model_dump(),
            "held_out": self.reference.description.model_dump(),
            "base": {
                **self.reference.quality.model_dump(),
                "linear_parameters": counts.linear_parameters,
                "parameters": counts.parameters,
                "bytes": sum(file.stat().st_size for file in self.base.glob("*.safetensors")),
            },
            "machine": measure.machine(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def path_of(results: Path, method: str, ratio: float) -> Path:
    """Where a result lies; what is only quantized has no ratio."""
    return results / (f"{method}.json" if method in QUANTIZED else f"{method}.{round(ratio * 100):02d}.json")


def do(bench: Bench, method: str, ratio: float, calibration: Calibration, force: bool) -> None:
    """Make one result, where it is not there yet."""
    path = path_of(bench.results, method, ratio)
    made_from = {
        "calibration_sha256": bench.calibration.sha256,
        "held_out_sha256": bench.reference.description.sha256,
        **(_steps(bench, method, ratio) if method not in RIVALS else _asked(bench, method, ratio)),
    }
    if path.exists() and not force and json.loads(path.read_text(encoding="utf-8"))["made_from"] == made_from:
        return
    head = {"method": method, "ratio": None if method in QUANTIZED else ratio, "made_from": made_from}
    if method in RIVALS:
        found = rival(bench, method, made_from["keep"], calibration)
    else:
        found = ours(bench, method, made_from["steps"])
    disk.write_atomically(path, json.dumps({**head, **found, **bench.shared}, indent=1) + "\n")
    quality = found["quality"]
    progress(
        f"{path.stem} | perplexity {quality['perplexity']:.3f} | KL {quality['mean_kl']:.4f} | {found['seconds']} s"
    )


def _steps(bench: Bench, method: str, ratio: float) -> dict[str, Any]:
    return {"steps": pruning_ours.steps(method, ratio)}


def _asked(bench: Bench, method: str, ratio: float) -> dict[str, Any]:
    ours = path_of(bench.results, twin(RIVALS[method].alike), ratio)
    made = json.loads(ours.read_text(encoding="utf-8"))["linear_parameters"] if ours.exists() else 0
    keep = pruning_ours.least(bench.base, ratio, bench.work, made)
    return {"keep": keep, "settings": [dict(each) for each in RIVALS[method].settings]}


def rival(bench: Bench, method: str, keep: int, calibration: Calibration) -> dict[str, Any]:
    """A rival with every setting of its table; the best one's result, in full."""
    few = replace(bench.reference, tokens=bench.reference.tokens[:TRIAL], hidden=bench.reference.hidden[:TRIAL])
    tried, best = [], None
    for setting in RIVALS[method].settings:
        model = load(bench.base)
        calibration.saved, begun = 0.0, time.monotonic()
        RIVALS[method].prune(model, calibration, keep, **setting)
        seconds = time.monotonic() - begun + calibration.saved
        alone = len(RIVALS[method].settings) == 1
        perplexity = 0.0 if alone else pruning_quality.measure(model, few, kl=False).perplexity
        if not alone:
            tried.append({"setting": setting, "perplexity": perplexity})
        if best is None or perplexity < best[0]:
            best = perplexity, setting, model, seconds
    assert best is not None
    _, setting, model, seconds = best
    return {
        "setting": setting,
        "tried": tried,
        "linear_parameters": parts.linear_parameters(model),
        "added_parameters": parts.added_parameters(model),
        "parameters": parts.parameters(model),
        "plain": parts.same_shapes(model) and not parts.added_parameters(model),
        "seconds": round(seconds, 2),
        "quality": pruning_quality.measure(model, bench.reference).model_dump(),
    }


def load(base: Path) -> Any:
    """A dense model in float32, for good out of autograd's sight."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)


def ours(bench: Bench, method: str, steps: list[pruning_ours.Step]) -> dict[str, Any]:
    """A folder from `hubplugin run`, measured and removed."""
    out = bench.work / "out"
    whole = [{**step, "data": bench.more} if step["method"] == "recover" else step for step in steps]
    path = pruning_ours.write(bench.work / "manifest.yaml", bench.base, bench.source, {method: whole})
    pruning_ours.run(path, out, bench.work / "run.log")
    said = report.read(out / method)
    if said.calibration.sha256 != bench.calibration.sha256:
        raise RuntimeError("hubplugin run calibrated on other token ids than the rivals")
    quality = quality_metrics.measure(out / method, bench.family, bench.reference, kl=True).variant
    plain = same_shapes(out / method)
    shutil.rmtree(out)
    return {
        **({"recovery": said.recovery.model_dump(mode="json", exclude={"blocks"})} if said.recovery else {}),
        "linear_parameters": said.sizes.linear_parameters,
        "added_parameters": 0,
        "parameters": said.sizes.parameters,
        "plain": plain,
        "bytes": said.sizes.safetensors_bytes,
        "seconds": round(sum(said.seconds.get(stage, 0.0) for stage in ("shape", "compress and export")), 2),
        "quality": quality.model_dump(),
    }


def same_shapes(folder: Path) -> bool:
    """Whether all layers of a folder have the same tensors."""
    layers: dict[str, dict[str, list[int]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no dict
                if found := re.match(r"model\.layers\.(\d+)\.(.*)", name):
                    layers.setdefault(found[1], {})[found[2]] = tensors.get_slice(name).get_shape()
    return all(each == next(iter(layers.values())) for each in layers.values())


def opened(calibration: Path | None, held_out: Path | None, model: str = "docs") -> Bench:
    """A model with its tokens: from text files, or samples of the docs model's own."""
    base = models.base(model, WORK.parent)
    paths = (
        models.tokens(model, WORK.parent, SEQUENCES, 0, calibration),
        models.tokens(model, WORK.parent, SEQUENCES, HELD_OUT, held_out),
    )
    described = [
        report.Tokens.model_validate_json(each.with_suffix(".json").read_text(encoding="utf-8")) for each in paths
    ]
    ids = [torch.from_numpy(numpy.load(each)) for each in paths]
    row = families.match(configs.read_config(base, str(base)), str(base))
    where: dict[str, Any] = {"files": [str(calibration.resolve())]} if calibration else {"self": True}
    more = MORE_ON_REAL if model != "docs" else MORE_FROM_TEXT if calibration else MORE
    return Bench(
        base=base,
        work=WORK,
        results=REAL if model != "docs" else TEXT if calibration else RESULTS,
        family=row,
        reference=quality_metrics.reference(base, row, ids[1], described[1]),
        ids=ids[0],
        calibration=described[0],
        source={**where, "samples": SEQUENCES, "sequence_length": SEQUENCE, "seed": 0},
        more={**where, "samples": more, "sequence_length": SEQUENCE, "seed": 2},
    )


def run(bench: Bench, methods: list[str], ratios: list[float], force: bool) -> None:
    """Every method at every ratio."""
    bench.results.mkdir(parents=True, exist_ok=True)
    bench.work.mkdir(parents=True, exist_ok=True)
    for method in methods:
        calibration = Calibration(load(bench.base), bench.ids)  # anew for each: nothing is shared between rivals
        for ratio in pruning_ours.ratios(method, ratios):
            do(bench, method, ratio, calibration, force)


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--ratios", nargs="*", type=float, default=RATIOS)
    parser.add_argument("--model", choices=["docs", "smollm2-moved"], default="docs")
    parser.add_argument("--calibration", type=Path, help="a text file, instead of the model's own samples")
    parser.add_argument("--held-out", type=Path, help="a text file, for evaluation")
    parser.add_argument("--force", action="store_true", help="run again what is there")
    options = parser.parse_args()
    if (options.calibration is None) != (options.held_out is None):
        parser.error("give both --calibration and --held-out, or neither")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    bench = opened(options.calibration, options.held_out, options.model)
    run(bench, list(options.methods), list(options.ratios), options.force)


if __name__ == "__main__":
    main()
