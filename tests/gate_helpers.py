"""Candidates for single lines of the gate, with only what a line reads."""

from pathlib import Path
from typing import Any

from hubplugin.evaluation.gate import Candidate
from hubplugin.manifest.metrics import Thresholds


def candidate(folder: Path | None = None, plan: Any = None, **more: Any) -> Candidate:
    """A candidate; what is not given is None or empty."""
    fields: dict[str, Any] = {"base": folder, "samples": {}, "evaluation": None, "thresholds": Thresholds()}
    return Candidate(**{"folder": folder, "plan": plan, **fields, "generate": None, "prompts": [], **more})
