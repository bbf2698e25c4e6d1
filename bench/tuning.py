"""What tuning after quantization gives back: GPTQ alone, with tuned scales and norms, and with rounding searched too.

    python bench/tuning.py MODEL --calibration a.txt --held-out b.txt --out results.json

Every line is made from the same GPTQ folder and the same calibration tokens, and measured on the same held-out ones;
with --training-samples tuning learns from other sequences of the calibration text.
Seconds are wall time: of GPTQ, and of tuning on top. What --out holds already is not measured again. --steps takes
other settings of the step, as JSON by name.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import quantized

from hubplugin.compress.calibration import calibration_data
from hubplugin.evaluation import quality_metrics
from hubplugin.hub import snapshots
from hubplugin.manifest.source import Source
from hubplugin.manifest.steps.training.tune import Tune
from hubplugin.model.architectures import families
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.recovery import recover

STEPS: dict[str, dict[str, Any]] = {"tune": {}, "tune, rounding": {"rounding": True}}
ALONE = "gptq"


def main() -> None:
    """Measure what is missing, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--held-out-samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--training-samples", type=int, help="of the calibration text, other ones than for GPTQ")
    parser.add_argument("--steps", type=json.loads, default=STEPS)
    options = parser.parse_args()
    found = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {"runs": []}
    measure(found, options)
    print(table(found["runs"]))


def measure(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Fill in the runs that are missing, and write the file after each."""
    model = options.model.resolve()
    row = families.match(snapshots.peek(str(model), model).config, str(model))
    calibration, held_out = (
        tokens(model, file, samples, options.length, shuffle)
        for file, samples, shuffle in (
            (options.calibration, options.samples, True),
            (options.held_out, options.held_out_samples, False),
        )
    )
    training = calibration
    if options.training_samples:
        training = tokens(model, options.calibration, options.training_samples, options.length, True, seed=1)
    base = quality_metrics.reference(model, row, held_out.ids, held_out.description)
    found |= {
        "model": model.name,
        "calibration": calibration.description.model_dump(),
        "training": training.description.model_dump(),
        "held_out": held_out.description.model_dump(),
        "base": base.quality.perplexity,
    }
    for bits in options.bits:
        student = options.out.parent / f".{options.out.stem}-{bits}"
        for name, settings in {ALONE: None, **options.steps}.items():
            if any((run["bits"], run["name"]) == (bits, name) for run in found["runs"]):
                continue
            begun, folder = time.monotonic(), student
            if settings is None:
                grid = {"method": "gptq", "bits": bits, "group_size": options.group_size}
                quantized.by(model, student, grid, calibration.ids)
                record = None
            else:
                folder = student.with_name(f"{student.name}-tuned")
                shutil.rmtree(folder, ignore_errors=True)
                step = Tune(method="tune", **settings)
                record = recover.run(student, model, folder, training.ids, step, dense=model)
            seconds = time.monotonic() - begun
            quality = quality_metrics.measure(folder, row, base, kl=True).variant
            run = {"bits": bits, "group_size": options.group_size, "name": name, "settings": settings}
            run |= {"seconds": seconds, **quality.model_dump(), "ratio": quality.perplexity / base.quality.perplexity}
            run["training"] = record and record.model_dump(exclude={"blocks"})
            found["runs"].append(run)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(f"W{bits} | {name} | KL {quality.mean_kl:.4f} | {seconds:.0f} s", flush=True)


def tokens(
    model: Path, file: Path, samples: int, length: int, shuffle: bool, seed: int = 0
) -> calibration_data.TokenSequences:
    """Sequences of a text file."""
    source = Source(files=(file.name,), samples=samples, sequence_length=length, seed=seed)
    return calibration_data.tokens(source, read_tokenizer(model), file.resolve().parent, model, shuffle=shuffle)


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as Markdown: KL beside GPTQ's alone, perplexity over the base's."""
    lines = [
        "| | mean KL | of GPTQ's | perplexity / base | top-1 | seconds on top |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for run in sorted(runs, key=lambda run: -run["bits"]):
        alone = next(one for one in runs if (one["bits"], one["name"]) == (run["bits"], ALONE))
        cells = [f"W{run['bits']} g{run['group_size']}, {run['name']}", f"{run['mean_kl']:.4f}"]
        cells += [f"{run['mean_kl'] / alone['mean_kl']:.2f}", f"{run['ratio']:.3f}"]
        cells += [f"{run['top1_agreement']:.3f}", f"{run['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
