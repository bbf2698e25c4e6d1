"""A folder with a model quantized by one step on given token ids, as benches of settings need it. Knows no text."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from hubplugin.checkpoint import resume
from hubplugin.compress import stages
from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.plan import planner


def by(model: Path, out: Path, step: dict[str, Any], ids: Tensor) -> Path:
    """Write `out` anew: the model by a step as a manifest has it, calibrated on ids [sequences, tokens]."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    source = {"self": True, "samples": ids.shape[0], "sequence_length": ids.shape[1]}  # stands for the ids
    written = {"model": str(model.resolve()), "calibrate": source, "variants": {"variant": [step]}}
    document = out.with_suffix(".yaml")
    document.write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
    loaded = loading.load(document)
    peek = snapshots.peek(loaded.manifest.model, loaded.folder)
    variant = planner.make(loaded, peek.config, peek.tensors).variants[0]
    stages.run_pass(model, variant, ids, out, resume.Fingerprint())
    return out
