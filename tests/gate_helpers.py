"""Candidates for single lines of the gate, with only what a line reads."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hubplugin.evaluation.gate import Candidate
from hubplugin.manifest.metrics import Thresholds


def candidate(folder: Path | None = None, plan: Any = None, **more: Any) -> Candidate:
    """A candidate; what is not given is None or empty, and a plan that is not given is of no adapter."""
    fields: dict[str, Any] = {"base": folder, "samples": {}, "evaluation": None, "thresholds": Thresholds()}
    fields |= {"folder": folder, "plan": plan or SimpleNamespace(adapter=None), "generate": None, "prompts": []}
    return Candidate(**{**fields, **more})
