"""Every family of compression at the same bytes, on one model: runs bench/families.yaml, a variant at a time.

    python bench/families.py --check                 # bytes of all variants, from the plan; makes nothing
    python bench/families.py                         # everything that is not in the result file yet
    python bench/families.py --only GPTQ-4x Mixed-4x --no-speed
    python bench/families.py --model DIR --calibration a.txt --held-out b.txt --samples 16 --held-out-samples 32

Stopped and started again, it goes on from the block it had reached. A variant is added in the manifest and nowhere
else. Speed may be measured later: without --no-speed, finished variants are timed and not made again. Results are in a
file of bench/results/families, from which bench/families_page.py writes the page. A run says how much of the machine
other processes used meanwhile.
"""

import argparse
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import families_result as result
import measure
import psutil
import torch
import yaml

from hubplugin import api, pipeline, variant_folder
from hubplugin.checkpoint.safetensors_io import safetensors_bytes
from hubplugin.errors import HubPluginError
from hubplugin.evaluation import engine_choice, generation
from hubplugin.job import Engines, Job
from hubplugin.manifest.methods import METHODS
from hubplugin.plan.draft import DraftPlan, Plan
from hubplugin.plan.vllm_support import Verdict
from hubplugin.progress import progress

HERE = Path(__file__).parent
MANIFEST, RESULTS, WORK = HERE / "families.yaml", HERE / "results" / "families", HERE / ".work" / "families"
OTHER_SOURCES = ("dataset", "config", "split", "revision", "column", "self", "skip")  # and what goes with them


def main() -> None:
    """Check bytes, then make what is missing."""
    options = parsed()
    manifest = written(yaml.safe_load(options.manifest.read_text(encoding="utf-8")), options)
    variants = manifest["variants"]
    if unknown := set(options.only or ()) - variants.keys():
        raise SystemExit(f"{options.manifest} has no variant {', '.join(sorted(unknown))}")
    asked = {**manifest, "variants": {name: variants[name] for name in options.only or variants}}
    try:
        planned = api.plan(asked)
        if options.check:
            print("\n".join(f"{name:28}{ratio:7.3f}{off:+8.2%}" for name, ratio, off in ratios(planned)))
        check(planned, options.tolerance)
        if not options.check:
            run(Job(api.document(asked), planned), variants, options)
    except HubPluginError as error:
        raise SystemExit(str(error)) from error


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=MANIFEST)
    parser.add_argument("--check", action="store_true", help="Only print how many times smaller variants would be.")
    parser.add_argument("--only", nargs="+", help="Names of variants, made in this order.")
    parser.add_argument("--model", help="In place of the manifest's; a folder or a name on the Hub.")
    parser.add_argument("--note", default="", help="What the page says of the model, in a sentence.")
    parser.add_argument("--calibration", type=Path, help="A text file in place of the manifest's dataset.")
    parser.add_argument("--held-out", type=Path, help="The same for the evaluation.")
    parser.add_argument("--samples", type=int, help="Sequences of the calibration.")
    parser.add_argument("--held-out-samples", type=int, help="Sequences of the evaluation.")
    parser.add_argument("--sequence-length", type=int, help="Tokens of each sequence, of both.")
    parser.add_argument("--training-samples", type=int, help="Other sequences of that text, for steps that train.")
    parser.add_argument("--no-speed", action="store_true", help="Time nothing, and start no vLLM for the gate either.")
    parser.add_argument("--tolerance", type=float, default=0.03, help="How far a ratio may be from its name's.")
    parser.add_argument("--beyond", type=float, default=100, help="Times the base's perplexity that end a family.")
    parser.add_argument("--work", type=Path, default=WORK, help="A folder for the variants.")
    parser.add_argument("--out", type=Path, help="The result file.")
    return parser.parse_args()


def written(manifest: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The manifest as the command line has it. Steps that train get text of their own only where that is asked for."""
    evaluate = {key: value for key, value in manifest["evaluate"].items() if key != "speed" or not options.no_speed}
    evaluate["perplexity"] = _source(
        evaluate["perplexity"], options.held_out, options.held_out_samples, options.sequence_length
    )
    calibrate = _source(manifest["calibrate"], options.calibration, options.samples, options.sequence_length)
    other = {**calibrate, "seed": calibrate.get("seed", 0) + 2}
    variants = {
        name: [_trained_on(step, other, options) for step in steps] for name, steps in manifest["variants"].items()
    }
    model = options.model or manifest["model"]
    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    return {**manifest, "model": model, "calibrate": calibrate, "variants": variants, "evaluate": evaluate}


def _trained_on(step: Mapping[str, Any], other: Mapping[str, Any], options: argparse.Namespace) -> Mapping[str, Any]:
    """A step, where it trains on text of its own: that of the manifest, or other sequences of the calibration text."""
    if "data" not in step and not (
        options.training_samples and "data" in METHODS[step["method"]].settings.model_fields
    ):
        return step
    data = _source(step.get("data", other), options.calibration, options.training_samples, options.sequence_length)
    return {**step, "data": data}


def _source(source: Mapping[str, Any], file: Path | None, samples: int | None, length: int | None) -> dict[str, Any]:
    changed = dict(source)
    if file:
        changed = {key: value for key, value in source.items() if key not in OTHER_SOURCES}
        changed["files"] = [str(file.resolve())]
    given = {"samples": samples, "sequence_length": length}
    return changed | {key: value for key, value in given.items() if value}


def ratios(planned: Plan) -> list[tuple[str, float, float]]:
    """Of every variant its name, how many times smaller its linears are planned to be, and how far that is off."""
    found = []
    for variant in planned.variants:
        bits = variant.linear_bits_per_weight
        ratio = result.linears_ratio(planned.linear_parameters, variant.linear_parameters, bits)
        found.append((variant.name, ratio, ratio / result.target(variant.name) - 1))
    return found


def check(planned: Plan, tolerance: float) -> None:
    """Raise SystemExit where a variant would not have the bytes that its name says."""
    if wrong := [f"{name} ({off:+.1%})" for name, _, off in ratios(planned) if abs(off) > tolerance]:
        raise SystemExit(f"planned bytes are more than {tolerance:.0%} off the ratio in the name: {', '.join(wrong)}")


def run(job: Job, variants: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Make what the result file lacks, and write it after each variant; `variants` are all that the manifest has."""
    job.prepare()
    file = options.out or RESULTS / f"{job.base_name}.json"
    found = result.begin(file, {**head(job), "note": options.note}, variants)
    engines = Engines(
        transformers_alone if options.no_speed else engine_choice.generate,
        engine_choice.take_turn,
        engine_choice.serve_cache,
    )
    for draft in job.plan.drafts:
        if why := result.why_not(found, draft.name, options.beyond, timed=not options.no_speed):
            progress(f"{draft.name}: {why}")
        else:
            before, out = found["runs"].get(draft.name, {}), options.work / job.base_name
            if draft.parent and not (out / draft.parent.name).exists():  # an adapter's, which was measured elsewhere
                made(job, draft.parent, out, engines, {})
            result.add(file, found, draft.name, made(job, draft, out, engines, before))


def head(job: Job) -> dict[str, Any]:
    """What all results of a file share."""
    reference, base = job.reference, job.plan
    assert reference is not None
    return {
        "model": job.base_name,
        "base": {
            "parameters": base.parameters,
            "linear_parameters": base.linear_parameters,
            "bytes": safetensors_bytes(job.snapshot.path),
            **reference.quality.model_dump(exclude_none=True),
        },
        "calibration": job.calibration.description.model_dump(),
        "held_out": reference.description.model_dump(),
        "machine": measure.machine(),
        "threads": torch.get_num_threads(),
    }


def made(job: Job, draft: DraftPlan, out: Path, engines: Engines, before: Mapping[str, Any]) -> dict[str, Any]:
    """One variant through the pipeline, and what it cost; or why it could not be made. Of one that is only timed now,
    what was known `before` of its making stays."""
    stood, continued = (out / draft.name).exists(), variant_folder.making(out, draft.name).exists()
    begun, busy, own = time.monotonic(), measure.busy_seconds(), _own_seconds()
    try:
        report = pipeline.one(job, draft, out, engines)
    except HubPluginError as error:
        progress(f"{draft.name}: {error}")
        return {"failed": f"{error.what}"}
    wall = time.monotonic() - begun
    used = measure.busy_seconds() - busy - (_own_seconds() - own)
    others = None if stood else round(max(0.0, used / wall / (psutil.cpu_count() or 1)), 3)
    known = {"date": datetime.now(UTC).date().isoformat(), "others": others, "continued": continued}
    known |= {key: before[key] for key in known if key in before}
    return known | result.of_report(report, job.plan.linear_parameters)


def _own_seconds() -> float:
    """CPU seconds of this process, and of the processes that it has started and that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def transformers_alone(
    folder: Path, prompts: list[list[int]], tokens: int, verdicts: tuple[Verdict, ...]
) -> generation.Generated:
    """The gate's generation without vLLM: whether the folder computes what it should is seen, not whether it serves."""
    return generation.generate_dequantized(folder, prompts, tokens)


if __name__ == "__main__":
    main()
