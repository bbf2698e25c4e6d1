"""What variants of one manifest gain by being made together, and that no byte of them changes.

    python bench/many_variants.py MODEL --calibration text.txt [--samples 64] [--rounds 2] [--manifest variants.yaml]

Makes the variants of a manifest (of the five below, without one) in turns: all of a manifest, as `hubplugin run` does,
and each by itself. Prints as Markdown the seconds of compressing them, peak memory, and how many files differ. The gate
starts no vLLM.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import measure
import yaml
from families import transformers_alone

from hubplugin import memory, passes, pipeline, preparation
from hubplugin.disk import sha256
from hubplugin.evaluation import engine_choice
from hubplugin.job import Engines, Job
from hubplugin.manifest.reading import loading
from hubplugin.report import Report

INT4 = {"method": "gptq", "bits": 4, "group_size": 64}
VARIANTS: dict[str, list[dict[str, Any]]] = {  # of the kinds that manifests/demo.yaml has
    "GPTQ-Int4-g64": [INT4],
    "GPTQ-Int4-g32": [{**INT4, "group_size": 32}],
    "GPTQ-Int8": [{"method": "gptq", "bits": 8, "group_size": -1}],
    "Pruned-8": [{"method": "prune", "ffn": 0.083}],
    "Pruned-8-GPTQ-Int4": [{"method": "prune", "ffn": 0.083}, INT4],
}
ENGINES = Engines(transformers_alone, engine_choice.take_turn, engine_choice.serve_cache)


def main() -> None:
    """Make them in turns, and say what each way took."""
    options = _parsed()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    document = loading.load(_manifest(options))
    planned = preparation.planned(document)
    Job(document, planned).prepare()  # libraries and files are warm for all turns
    found: dict[str, list[tuple[float, float, int]]] = {"each alone": [], "together": []}
    for _turn in range(options.rounds):
        for way, one in found.items():
            shutil.rmtree(options.work / way, ignore_errors=True)
            job = Job(document, planned)
            memory.reset_peak()
            begun = time.monotonic()
            if way == "together":
                reports = pipeline.run(document, planned, options.work / way, transformers_alone)
            else:
                reports = [pipeline.one(job, draft, options.work / way, ENGINES) for draft in job.plan.drafts]
            one.append(
                (time.monotonic() - begun, _compressing(reports), max(made.peak_memory_bytes for made in reports))
            )
    print(_table(found, options.work, [draft.name for draft in planned.drafts]))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="A text file.")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--manifest", type=Path, help="Whose variants are made in place of the five.")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / ".work" / "many_variants")
    return parser.parse_args()


def _manifest(options: argparse.Namespace) -> Path:
    variants = yaml.safe_load(options.manifest.read_text("utf-8"))["variants"] if options.manifest else VARIANTS
    text = {"files": [str(options.calibration.resolve())], "samples": options.samples}
    calibrate = {**text, "sequence_length": options.sequence_length}
    path: Path = options.work / "manifest.yaml"
    path.write_text(json.dumps({"model": str(options.model.resolve()), "calibrate": calibrate, "variants": variants}))
    return path


def _compressing(reports: list[Report]) -> float:
    """Seconds of all variants together; a training or block that several share counts with each of them."""
    return sum(made.seconds[passes.STAGE] for made in reports)


def _table(found: dict[str, list[tuple[float, float, int]]], work: Path, names: list[str]) -> str:
    machine = measure.machine()
    lines = [
        f"{', '.join(names)}; {machine}",
        "",
        "| made | all, s | compressing, s | peak memory, GB |",
        "| --- | ---: | ---: | ---: |",
    ]
    medians = {}
    for way, turns in found.items():
        wall, compressing, peak = (statistics.median(column) for column in zip(*turns, strict=True))
        medians[way] = wall, compressing
        lines.append(f"| {way} | {wall:.1f} | {compressing:.1f} | {peak / 1e9:.2f} |")
    ratios = [one / two for one, two in zip(medians["together"], medians["each alone"], strict=True)]
    lines.append(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} | |")
    weights = sorted(path.relative_to(work / "together") for path in (work / "together").glob("*/*.safetensors"))
    differ = [path for path in weights if sha256(work / "together" / path) != sha256(work / "each alone" / path)]
    return "\n".join([*lines, "", f"{len(weights)} files of weights, {len(differ)} of which differ"])


if __name__ == "__main__":
    main()
