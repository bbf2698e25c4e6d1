"""One run of hubplugin's engine, its memory planned and measured; the arguments of every engine of the benchmark.

Goes the way `hubplugin run` goes from plan to finished weights, over given token ids: activations spill where they do
not fit, or where the case says so.
"""

import argparse
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def main() -> None:
    """Compress one folder and write what it took."""
    parser = argparse.ArgumentParser()
    for name in ("base", "tokens", "out", "report"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--case", type=json.loads, default={})
    options = parser.parse_args()
    found = run(options.base, options.tokens, options.out, options.case)
    part = options.report.with_name(f".{options.report.name}.part")
    part.write_text(json.dumps(found), encoding="utf-8")
    os.replace(part, options.report)


def run(base: Path, tokens: Path, out: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What was planned and measured, in bytes and seconds."""
    import time

    import numpy
    import torch

    from hubplugin import memory
    from hubplugin.checkpoint.dense_view import DenseView
    from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
    from hubplugin.compress import export, stages
    from hubplugin.compress.blocks import blockwise
    from hubplugin.hub import snapshots
    from hubplugin.manifest.reading import loading
    from hubplugin.model.architectures import families
    from hubplugin.model.block_runner import Model
    from hubplugin.model.devices import computing_dtype
    from hubplugin.plan import planner

    ids = torch.from_numpy(numpy.load(tokens))
    gptq = {
        "method": "gptq",
        "bits": 4,
        "group_size": 128,
    }
    gptq |= {key: case[key] for key in ("qep", "clip_search") if key in case}
    written = {
        "model": str(base.resolve()),
        "calibrate": {"files": ["none.txt"], "samples": ids.shape[0], "sequence_length": ids.shape[1]},  # ids are given
        "variants": {"variant": [*([{"method": "prune", "ffn": 0.25}] if case.get("prune") else []), gptq]},
    }
    out.mkdir(parents=True)
    document = out.with_suffix(".yaml")
    document.write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
    loaded = loading.load(document)
    peek = snapshots.peek(loaded.manifest.model, loaded.folder)
    planned = planner.make(loaded, peek.config, peek.tensors)
    variant, row = planned.variants[0], families.match(peek.config, str(base))
    stored = TORCH_DTYPES[planned.tensors[f"{variant.linears[0].name}.weight"].dtype]
    model = Model(DenseView(base), planned.config, row, computing_dtype(stored))
    target = export.Folder(out, base, variant, row)
    memory.reset_peak()
    begun = time.monotonic()
    forced = out / stages.SPILL
    if case.get("spill"):
        forced.mkdir()
        memory.spare()
    with nullcontext(forced) if case.get("spill") else stages.spilling(variant, out) as spill:
        for block in blockwise.blocks(model, blockwise.Calibration(ids, spill), variant, stored):
            target.add(block)
            del block
    disk = sum(file.stat().st_size for file in spill.rglob("*") if file.is_file()) if spill and spill.exists() else 0
    target.finish()
    return {
        "planned": variant.memory.spilled if spill else variant.memory.peak,
        "measured": memory.peak(),
        "spilled": spill is not None,
        "planned_disk": variant.memory.disk if spill else 0,
        "left_on_disk": disk,
        "planned_seconds": round(variant.seconds, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "device": variant.memory.device,
    }


if __name__ == "__main__":
    main()
