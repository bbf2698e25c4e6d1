"""Times the GPU engine on one device, stage by stage: random Llama-3-8B weights in host memory to packed tensors there.

    python bench/gpu.py                        # one CUDA device; writes bench/results/gpu/ and docs/bench-gpu.md
    python bench/gpu.py --device cpu --tiny    # a dry run of the same script on a toy, in seconds; writes nothing
    python bench/gpu.py --page                 # docs/bench-gpu.md again

128 sequences of 2048 random tokens, 4 bits in groups of 128, clip search, activation order; once as plain GPTQ, once
with all that the manifest does by default. Toy runs come first, uncounted, which compile the kernels. Ceilings are
measured in the same process. Where bench/environments.py installed llm-compressor (its torch must see the device), it
then gets the same weights and token ids; its time is that of its `oneshot` alone.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import environments
import gpu_page
import numpy
import torch
from gpu_model import EIGHT_B, TINY, Shape, Weights
from gpu_stages import TO_HOST, TrainingCheckpoints, ceilings, watched

from hubplugin.checkpoint import formats
from hubplugin.checkpoint.encodings import Grid
from hubplugin.compress.blocks import blockwise
from hubplugin.demo import MODEL as DOCS
from hubplugin.manifest.reading import loading
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.model.prefetch import Prefetch
from hubplugin.plan import planner
from hubplugin.plan.costs import workload
from hubplugin.plan.variant_plan import VariantPlan

HERE = Path(__file__).parent
WORK = HERE / ".work"
RIVAL = "llmcompressor"
PLAIN = "plain GPTQ"
RUNS: dict[str, dict[str, bool]] = {PLAIN: {"qep": False, "signed_scales": False}, "defaults": {}}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def planned(shape: Shape, weights: Weights, **settings: int | bool) -> VariantPlan:
    """One GPTQ variant of this model, with the manifest's defaults but for `settings`."""
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "gpu.yaml"
        written = {
            "model": "./random",
            "calibrate": {"self": True, "samples": shape.sequences, "sequence_length": shape.length},
            "variants": {"GPTQ": [{"method": "gptq", **settings}]},
        }
        document.write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
        return planner.make(loading.load(document), weights.config, weights.headers()).variants[0]


def tokens(shape: Shape) -> torch.Tensor:
    """Random token ids int32 [sequences, length]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(shape.vocabulary, (shape.sequences, shape.length), generator=generator, dtype=torch.int32)


def run(shape: Shape, device: str, weights: Weights, **settings: int | bool) -> dict[str, Any]:
    """Compress one model; seconds by stage, the work they did, bytes packed, losses."""
    variant, row = planned(shape, weights, **settings), families.match(weights.config, "bench")
    every = shape.sequences * shape.length
    corrected = workload.corrected_tokens(variant.steps, every) / every
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begun, marks = time.monotonic(), TrainingCheckpoints(device)
    packed, losses, fallbacks = 0, [], 0
    with watched(marks):
        prefixes = [row.block.format(i=index) for index in range(shape.layers)]
        source = Prefetch(weights, prefixes, device, torch.bfloat16)
        model = Model(source, weights.config, row, torch.bfloat16, device)
        for block in blockwise.blocks(model, blockwise.Calibration(tokens(shape)), variant, torch.bfloat16):
            for name, encoding in block.encodings.items():
                assert isinstance(encoding, Grid)
                scheme = variant.linear(name).scheme
                assert scheme is not None
                made = formats.tensors(encoding, scheme.layout, torch.bfloat16)
                with marks.stage(TO_HOST):
                    packed += sum(tensor.cpu().nbytes for tensor in made.values())
            losses += [result.loss for result in block.results if result.loss is not None]
            fallbacks += sum(result.fallback is not None for result in block.results)
            print(f"block {block.index + 1}/{shape.layers}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
        seconds = marks.seconds()
    return {
        "wall": time.monotonic() - begun,
        "seconds": seconds,
        "work": {**shape.work(corrected), TO_HOST: packed},
        "packed_bytes": packed,
        "mean_loss": sum(losses) / len(losses),
        "fallbacks": fallbacks,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if device != "cpu" else None,
    }


def rival(shape: Shape, weights: Weights, bits: int, group_size: int) -> dict[str, Any] | None:
    """llm-compressor's report on the same weights and ids; None where it is not installed. Raises where it fails."""
    if not environments.ready(RIVAL):
        return None
    shutil.rmtree(WORK / "gpu", ignore_errors=True)
    base = WORK / "gpu" / "base"
    base.mkdir(parents=True)
    weights.write(base)
    shape.config().save_pretrained(base)
    for file in TOKENIZER:  # which it asks for, and does not use
        shutil.copyfile(DOCS / file, base / file)
    numpy.save(WORK / "gpu" / "tokens.npy", tokens(shape).numpy())
    report = WORK / "gpu" / "report.json"
    files = {"base": base, "tokens": WORK / "gpu" / "tokens.npy", "out": WORK / "gpu" / "out", "report": report}
    options = {**files, "bits": bits, "group-size": group_size}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run(
        [str(environments.python(RIVAL)), str(HERE / "rival_llmcompressor.py"), *arguments],
        check=True,
        stdout=sys.stderr,
    )
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    shutil.rmtree(WORK / "gpu")
    return found


def measure(shape: Shape, device: str, bits: int, group_size: int, with_rival: bool) -> dict[str, Any]:
    """Everything the page shows."""
    common = {"bits": bits, "group_size": group_size}
    if device != "cpu":
        for settings in RUNS.values():
            run(TINY, device, Weights(TINY, device), **common, **settings)
    weights = Weights(shape, device)
    found = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "CPU",
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
        "shape": asdict(shape),
        "bits": bits,
        "group_size": group_size,
        "ceilings": ceilings(device, *((8192, 2**30) if device != "cpu" else (256, 2**20))),
        "runs": {name: run(shape, device, weights, **common, **settings) for name, settings in RUNS.items()},
    }
    if with_rival:
        found["llmcompressor"] = rival(shape, weights, bits, group_size)
    return found


def main() -> None:
    """Measure, write the result and the page; or say why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy instead of the 8B shape")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--no-rival", action="store_true", help="without llm-compressor")
    parser.add_argument("--page", action="store_true", help="only write docs/bench-gpu.md from what was measured")
    options = parser.parse_args()
    if options.page:
        gpu_page.write()
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --tiny runs the same script on a toy")
    if options.device == "cpu" and not options.tiny:
        parser.error("the 8B shape on a CPU takes days; add --tiny")
    shape = TINY if options.tiny else EIGHT_B
    full = options.device == "cuda" and not options.tiny
    found = measure(shape, options.device, options.bits, options.group_size, full and not options.no_rival)
    print(gpu_page.table(found))
    if full:
        gpu_page.RESULT.parent.mkdir(parents=True, exist_ok=True)
        part = gpu_page.RESULT.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        os.replace(part, gpu_page.RESULT)
        gpu_page.write()


if __name__ == "__main__":
    main()
