"""Manifests whose variants share work, run as a whole and a variant at a time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hubplugin import pipeline, preparation, report
from hubplugin.evaluation import engine_choice
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.job import Engines, Job
from hubplugin.manifest.reading import loading
from hubplugin.manifest.schema import Document
from hubplugin.plan.draft import Plan

Step = Mapping[str, object]


def write(home: Path, variants: Mapping[str, Sequence[Step]], samples: int, **gate: float) -> None:
    """The manifest m.yaml of a folder that holds the base `pico`, and the texts that it names."""
    entries = {
        "model": "./pico",
        "calibrate": {"files": ["text.txt"], "samples": samples, "sequence_length": 32, "seed": 0},
        "variants": variants,
        "evaluate": {"perplexity": {"files": ["held-out.txt"], "samples": 4, "sequence_length": 32}},
        "gate": gate,
    }
    (home / "m.yaml").write_text(json.dumps(entries), encoding="utf-8")  # JSON is YAML
    (home / "text.txt").write_text("The hill was steep and the road was long. " * 60)
    (home / "held-out.txt").write_text("A quiet river ran below the old mill. " * 60)


def planned(home: Path) -> tuple[Document, Plan]:
    """The manifest m.yaml of a folder."""
    document = loading.load(home / "m.yaml")
    return document, preparation.planned(document)


def run(home: Path, out: str = "out") -> list[report.Report]:
    """All variants, as `hubplugin run` makes them."""
    return pipeline.run(*planned(home), home / out, _dequantized)


def alone(home: Path) -> None:
    """Every variant by itself, one after another, in the folder `alone`."""
    job = Job(*planned(home))
    engines = Engines(_dequantized, engine_choice.take_turn, engine_choice.serve_cache)
    for draft in job.plan.drafts:
        pipeline.one(job, draft, home / "alone", engines)


def weights(home: Path, out: str) -> dict[str, bytes]:
    """Every file of weights, and config.json, of all variants."""
    found = [*(home / out).glob("*/*.safetensors"), *(home / out).glob("*/config.json")]
    return {str(file.relative_to(home / out)): file.read_bytes() for file in found}


def _dequantized(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)
