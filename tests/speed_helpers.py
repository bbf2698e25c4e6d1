"""Runs of a pico model whose manifest asks for speed: engines are a test's doubles, all else is the pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pico
import pytest
import yaml

from hubplugin import pipeline, report
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.evaluation.speed import ceiling
from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.plan import planner

SPEED: dict[str, Any] = {"concurrency": [2], "prompt_tokens": 8, "output_tokens": 4}
TEXTS = {
    "text.txt": "The hill was steep and the road was long. ",
    "other.txt": "A river runs to the sea, and the sea is wide. ",
}
Run = Callable[..., report.Report]


def runner(folder: Path, monkeypatch: pytest.MonkeyPatch, *engines: Any) -> Run:
    """What runs a variant in a folder, with `speed` settings, more limits of the `gate` and the name of the evaluated
    `text`. `engines` are what stand for vLLM in `pipeline.run`."""
    monkeypatch.setattr(ceiling, "fastest", lambda dtypes, device: ("float32", 1e9))
    pico.write(folder / "pico")
    for name, words in TEXTS.items():
        (folder / name).write_text(words * 60)

    def run(speed: dict[str, Any] | None = None, text: str = "text.txt", **gate: float) -> report.Report:
        evaluate: dict[str, Any] = {"perplexity": {"files": [text], "samples": 10, "sequence_length": 32}}
        asked = {
            "model": "./pico",
            "calibrate": {"files": ["text.txt"], "samples": 4, "sequence_length": 32, "seed": 0},
            "variants": {"Thin": [{"method": "prune", "ffn": 0.25, "refit": False}]},
            "evaluate": evaluate | ({"speed": SPEED | speed} if speed is not None else {}),
            "gate": {"perplexity_ratio": 9, **gate},
        }
        path = folder / "m.yaml"
        path.write_text(yaml.safe_dump(asked), encoding="utf-8")
        document = loading.load(path)
        peek = snapshots.peek(document.manifest.model, document.folder)
        planned = planner.make(document, peek.config, peek.tensors, revision=peek.sha)
        return pipeline.run(document, planned, folder / "out", _generate, *engines)[0]

    return run


def _generate(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)
