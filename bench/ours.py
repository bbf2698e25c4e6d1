"""The benchmark's door to hubplugin: the engine of `hubplugin run`, on given token ids.

Recipes: `default` is the manifest's defaults; `fast` goes without corrected targets; `plain` also without a search of
scales, as the rivals do by default; `tuned` is the defaults and then `method: tune` on the same ids; `rounded` lets it
search roundings too.

The manifest names the calibration data only because a manifest must; the ids that count are the given ones.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from stages import Clock, ask

RECIPES: dict[str, dict[str, bool]] = {
    "default": {},
    "fast": {"qep": False},
    "plain": {"qep": False, "clip_search": False, "signed_scales": False},
    "fisher": {"fisher_tokens": 4096},
    "tuned": {},
    "rounded": {},
}
TUNES: dict[str, dict[str, bool]] = {"tuned": {}, "rounded": {"rounding": True}}  # settings of the step behind


def main() -> None:
    """Quantize one folder into AutoGPTQ's format."""
    options, clock = ask(), Clock()
    with clock.stage("import"):
        import numpy
        import torch
        from transformers.models.llama import modeling_llama  # noqa: F401 - else imported when a model is first built

        import hubplugin
        from hubplugin.checkpoint.dense_view import DenseView
        from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
        from hubplugin.compress import export
        from hubplugin.compress.blocks import blockwise
        from hubplugin.hub import snapshots
        from hubplugin.manifest.reading import loading
        from hubplugin.model.architectures import families
        from hubplugin.model.block_runner import Model
        from hubplugin.model.devices import computing_dtype
        from hubplugin.plan import planner

    with clock.stage("load"):
        ids = torch.from_numpy(numpy.load(options.tokens))
        document = options.report.with_suffix(".yaml")
        step = {"method": "gptq", "bits": options.bits, "group_size": options.group_size, **RECIPES[options.recipe]}
        written = {
            "model": str(options.base.resolve()),
            "calibrate": {"self": True, "samples": ids.shape[0], "sequence_length": ids.shape[1]},
            "variants": {"variant": [step]},
        }
        document.write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
        loaded = loading.load(document)
        peek = snapshots.peek(loaded.manifest.model, loaded.folder)
        planned = planner.make(loaded, peek.config, peek.tensors)
        variant, row = planned.variants[0], families.match(peek.config, str(options.base))
        stored = TORCH_DTYPES[planned.tensors[f"{variant.linears[0].name}.weight"].dtype]
        model = Model(DenseView(options.base), planned.config, row, computing_dtype(stored))
        options.out.mkdir(parents=True)
        target = export.Folder(options.out, options.base, variant, row)
    with clock.stage("quantize"):
        for block in blockwise.blocks(model, blockwise.Calibration(ids), variant, stored):
            target.add(block)
    with clock.stage("save"):
        target.finish()
    used = variant.steps[0].model_dump(exclude={"method", "bits", "group_size"})
    if options.recipe in TUNES:
        with clock.stage("tune"):
            used["tune"] = tuned(options.base, options.out, ids, TUNES[options.recipe])
    clock.write(options.report, hubplugin.__version__, used, ("torch", "transformers"))


def tuned(base: Path, folder: Path, ids: Any, settings: dict[str, bool]) -> dict[str, Any]:
    """Tune a quantized folder in place on ids [sequences, tokens]; the settings that were in force."""
    from hubplugin.checkpoint import resume
    from hubplugin.manifest.steps.training.tune import Tune
    from hubplugin.recovery import recover

    step, before = Tune(method="tune", **settings), folder.with_name(f"{folder.name}-before")
    folder.rename(before)
    recover.run(before, base, folder, ids, step, dense=base)
    shutil.rmtree(before)
    shutil.rmtree(folder / resume.TRAINING)
    return step.model_dump(exclude={"method"})


if __name__ == "__main__":
    main()
