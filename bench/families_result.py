"""The result file of bench/families.py: what stands in it of a variant, and which variants need not be run.

One file holds one run: the same tokens, machine and release for all of its variants. Knows reports; starts nothing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubplugin import disk
from hubplugin.report import Report
from hubplugin.speed_record import Speed

NAME = re.compile(r"(?P<family>.+)-(?P<ratio>\d+(\.\d+)?)x")
DENSE_BITS = 16  # of a weight in bfloat16
# stages of a report that are not the making of a variant: what all variants share, and what is measured of the result
NOT_MAKING = re.compile(r"pull|.* data|evaluation.*|tasks|speed|gate")
HOW_MUCH = ("samples", "sequence_length", "seed")  # of a source of tokens
PLUGIN = "hubplugin installed beside"  # what plan's notes say where stock vLLM does not serve a variant


def family(name: str) -> str:
    """GPTQ of GPTQ-3.2x. Raises SystemExit for a name that is not of this form."""
    return _parts(name)["family"]


def target(name: str) -> float:
    """3.2 of GPTQ-3.2x. Raises SystemExit for a name that is not of this form."""
    return float(_parts(name)["ratio"])


def _parts(name: str) -> dict[str, str]:
    found = NAME.fullmatch(name)
    if found is None:
        raise SystemExit(f"{name}: a variant here is named FAMILY-RATIOx, such as GPTQ-3.2x")
    return found.groupdict()


def linears_ratio(base_weights: int, weights: int, bits: float) -> float:
    """Bytes of the base's linears in bfloat16 over those of a variant of so many weights at so many bits."""
    return DENSE_BITS * base_weights / (weights * bits)


def begin(file: Path, head: Mapping[str, Any], variants: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The file's record, or a new one; `variants` by name are the manifest's steps, with or without a result.

    Raises SystemExit where the file is of other tokens, or of another machine or release.
    """
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {**head, "runs": {}}
    if other := [key for key, value in head.items() if found.get(key) != value]:
        raise SystemExit(f"{file} is of another {', '.join(other)}: name another file with --out, or remove it")
    steps = {name: [said(step) for step in variant] for name, variant in variants.items()}
    # a variant that the manifest describes otherwise now is to be run again; one that it has no more is no result
    runs = {name: found["runs"][name] for name in steps if found["runs"].get(name, {}).get("steps") == steps[name]}
    return {**found, "variants": steps, "runs": runs}


def said(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step as the manifest writes it; of a training step's text only how much it is, for files have local names."""
    shown = dict(step)
    if "data" in step:
        shown["data"] = {key: step["data"][key] for key in HOW_MUCH if key in step["data"]}
    return shown


def add(file: Path, found: dict[str, Any], name: str, run: Mapping[str, Any]) -> None:
    """Put a variant's run into the record and the file."""
    found["runs"][name] = {"steps": found["variants"][name], **run}
    file.parent.mkdir(parents=True, exist_ok=True)
    disk.write_atomically(file, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def why_not(found: Mapping[str, Any], name: str, beyond: float, timed: bool) -> str:
    """Why a variant need not be run, in words; empty where it must be."""
    run = found["runs"].get(name)
    if run and (run.get("failed") or not timed or run.get("speed")):
        return "in the result file already"
    smaller = [other for other in found["runs"] if family(other) == family(name) and target(other) < target(name)]
    for other in smaller:
        quality = found["runs"][other].get("quality")
        if quality and quality["perplexity"] > beyond * found["base"]["perplexity"]:
            return f"left out: {other} has more than {beyond:g} times the base's perplexity already"
    return ""


def of_report(made: Report, base_weights: int) -> dict[str, Any]:
    """What the page needs of a report."""
    assert made.evaluation is not None
    sizes, quality = made.sizes, made.evaluation.variant
    recovery = made.recovery or made.tuning
    making = {stage: seconds for stage, seconds in made.seconds.items() if not NOT_MAKING.fullmatch(stage)}
    return {
        "linears_ratio": linears_ratio(base_weights, sizes.linear_parameters, sizes.linear_bits_per_weight),
        "bits_per_weight": sizes.linear_bits_per_weight,
        "linear_parameters": sizes.linear_parameters,
        "parameters": sizes.parameters,
        "bytes": sizes.safetensors_bytes,
        "sparsity": sizes.sparsity,
        "flops_per_token": sizes.flops_per_token,
        "widths": made.widths,
        "quality": quality.model_dump(exclude_none=True),
        "seconds": {"making": round(sum(making.values()), 1), **made.seconds},
        "peak_memory_bytes": made.peak_memory_bytes,
        "trained": recovery
        and {"kl_before": recovery.kl_before, "kl_after": recovery.kl_after, "tokens": recovery.tokens},
        "fallbacks": len(made.fallbacks),
        "loads": {load.target: load.why for load in made.loads},
        "needs_plugin": any(PLUGIN in note for note in made.notes),
        "notes": list(made.notes),
        "speed": made.speed and _speed(made.speed),
    }


def _speed(speed: Speed) -> dict[str, Any]:
    """Output tokens per second and times the base's, by the number of requests under way."""
    if speed.variant is None:
        return {"not_measured": speed.not_measured}
    loads = [
        {
            "concurrency": load.concurrency,
            "tokens_per_second": load.tokens_per_second.median,
            "speedup": load.speedup and load.speedup.median,
        }
        for load in speed.variant.loads
    ]
    return {"engine": speed.engine, "loads": loads, "others": speed.variant.others_share.greatest}
