"""The side-by-side benchmark: every engine on the same model, token ids, bits and groups, in turn, one at a time.

    python bench/run.py                                   # the whole of it: hours on two cores
    python bench/run.py --models docs --tokens 8192       # what is named, with one default for everything else

Each run is a process of its own under the Python of its engine's environment. Results are kept in bench/results, one
file per cell, after every run: what is there is not run again unless `--force`. Standard library only, so that this
process stays small beside what it measures.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cells
import environments
import measure
from cells import Cell

HERE = Path(__file__).parent
WORK = HERE / ".work"
HELD_OUT_SEED, HELD_OUT_SEQUENCES = 1000, 64
RANDOM_HELD_OUT = 4  # sequences: for random weights KL only shows that a folder is whole
# engine -> its environment, its script and arguments; None is the environment that runs this file
SCRIPTS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "ours": (None, ("ours.py",)),
    "ours-fast": (None, ("ours.py", "--recipe", "fast")),
    "ours-plain": (None, ("ours.py", "--recipe", "plain")),
    "ours-fisher": (None, ("ours.py", "--recipe", "fisher")),
    "ours-tuned": (None, ("ours.py", "--recipe", "tuned")),
    "ours-rounded": (None, ("ours.py", "--recipe", "rounded")),
    "gptqmodel": ("gptqmodel", ("rival_gptqmodel.py",)),
    "gptqmodel-mse": ("gptqmodel", ("rival_gptqmodel.py", "--recipe", "mse")),
    "llmcompressor": ("llmcompressor", ("rival_llmcompressor.py",)),
    "llmcompressor-mse": ("llmcompressor", ("rival_llmcompressor.py", "--recipe", "mse")),
    "autoround": ("auto-round", ("rival_autoround.py", "--recipe", "default")),
    "autoround-light": ("auto-round", ("rival_autoround.py", "--recipe", "light")),
    "onecomp": ("onecomp", ("rival_onecomp.py",)),
    "onecomp-mse": ("onecomp", ("rival_onecomp.py", "--recipe", "mse")),
}


def say(line: str) -> None:
    """One line of talk on stderr."""
    print(line, file=sys.stderr, flush=True)


def environment() -> dict[str, str]:
    """The same for all engines: no GPU, no network, no coloured progress bars in logs."""
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def made(arguments: list[str]) -> list[Path]:
    """What bench/models.py prints: paths of a base folder and of token ids."""
    command = [sys.executable, str(HERE / "models.py"), *arguments]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return [Path(line) for line in done.stdout.split("\n") if line]


def prepared(cell: Cell, texts: dict[str, Path | None]) -> tuple[Path, Path, Path]:
    """Base folder, calibration ids, held-out ids; the latter two with a description beside them."""
    held_out = HELD_OUT_SEQUENCES if cell.data != "random" else RANDOM_HELD_OUT
    found = []
    for purpose, sequences, seed in (
        ("calibration", cell.sequences, cell.seed),
        ("held_out", held_out, HELD_OUT_SEED),
    ):
        text = texts[purpose] if cell.data == "text" else None
        more = ["--text", str(text)] if text else []
        found.append(made([cell.model, str(WORK), "--sequences", str(sequences), "--seed", str(seed), *more]))
    return found[0][0], found[0][1], found[1][1]


def engine_run(cell: Cell, engine: str, base: Path, ids: Path, out: Path, limit: float) -> tuple[dict[str, Any], Any]:
    """One process: (what it cost or why it failed, what it said about itself)."""
    name, (script, *more) = SCRIPTS[engine]
    python = str(environments.python(name)) if name else sys.executable
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    report, log = out.with_suffix(".json"), out.with_suffix(".log")
    report.unlink(missing_ok=True)
    arguments = {
        "--base": base,
        "--tokens": ids,
        "--out": out,
        "--bits": cell.bits,
        "--group-size": cell.group_size,
        "--report": report,
    }
    command = [python, str(HERE / script), *more, *(str(part) for pair in arguments.items() for part in pair)]
    cost = measure.run(command, environment(), log, limit)
    if cost.status or not report.exists():
        return {"failed": measure.why(log, cost), "process_wall": round(cost.wall, 2)}, None
    said = json.loads(report.read_text(encoding="utf-8"))
    files = sorted(out.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    row = {
        "wall": round(sum(said["wall"].values()) - said["wall"]["import"], 2),
        "process_wall": round(cost.wall, 2),
        "cpu": round(sum(said["cpu"].values()) - said["cpu"]["import"], 2),
        "process_cpu": round(cost.cpu, 2),
        "others_share": round(cost.others, 3),
        "peak_bytes": cost.peak,
        "import_bytes": said["import_bytes"],
        "stages": said["wall"],
        "safetensors_bytes": sum(file.stat().st_size for file in files),
        "sha256": digest.hexdigest(),
    }
    return row, {key: said[key] for key in ("version", "packages", "settings")}


def warm_up(engine: str) -> None:
    """An uncounted run on a tiny model: files come off the disk, and what compiles at first use compiles."""
    base, ids = made(["tiny", str(WORK), "--sequences", "2"])
    out = WORK / "out" / f"warm-up-{engine}"
    row, _ = engine_run(Cell("tiny", 1024), engine, base, ids, out, 1800)
    shutil.rmtree(out, ignore_errors=True)
    if "failed" in row:
        say(f"warm-up of {engine} failed: {row['failed']}")


def missing(cell: Cell, results: dict[str, Any], wanted: int | None) -> list[tuple[int, str]]:
    """(round, engine) pairs not yet run, round after round, each round starting with another engine."""
    done = {(run["round"], run["engine"]) for run in results["runs"]}
    order = []
    for number in range(max((cell.rounds(engine, wanted) for engine in cell.engines), default=0)):
        turned = cell.engines[number % len(cell.engines) :] + cell.engines[: number % len(cell.engines)]
        order += [(number, engine) for engine in turned if number < cell.rounds(engine, wanted)]
    return [pair for pair in order if pair not in done]


def judge(cell: Cell, results: dict[str, Any], base: Path, held_out: Path) -> None:
    """Add quality to the first round's runs that lack it, and remove their folders."""
    runs = unjudged(results)
    if not runs:
        return
    out = WORK / "quality.json"
    folders = [folder_of(cell, run) for run in runs]
    command = [sys.executable, str(HERE / "quality.py"), str(base), str(held_out), str(out), *map(str, folders)]
    subprocess.run(command, env=environment(), check=True)
    found = json.loads(out.read_text(encoding="utf-8"))
    for run, quality in zip(runs, found.pop("variants"), strict=True):
        run["quality"] = quality
    results["evaluation"] = found
    cell.write(results)
    for folder in folders:
        shutil.rmtree(folder)


def unjudged(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs whose folder is still to be measured. Only the first round's are."""
    return [run for run in results["runs"] if run["round"] == 0 and "failed" not in run and "quality" not in run]


def folder_of(cell: Cell, run: dict[str, Any]) -> Path:
    """Where a run writes."""
    return WORK / "out" / cell.name / f"{run['engine']}-{run['round']}"


def begun(cell: Cell, force: bool) -> dict[str, Any]:
    """A cell's results without those that are to be made again: all of its engines', or those whose folder is lost."""
    results = cell.read()
    lost = [run for run in unjudged(results) if not folder_of(cell, run).exists()]
    results["runs"] = [
        run for run in results["runs"] if run not in lost and not (force and run["engine"] in cell.engines)
    ]
    return results


def do(cell: Cell, options: argparse.Namespace, warm: set[str]) -> None:
    """Run what a cell lacks, and measure the folders of its first round."""
    results = begun(cell, options.force)
    todo = missing(cell, results, options.rounds)
    if not todo and not unjudged(results):
        say(f"{cell.name}: complete")
        return
    here = measure.machine()
    if results["runs"] and results["machine"] != here:
        say(f"{cell.name}: was begun on another machine or setting, left alone; --force runs it anew")
        return
    base, ids, held_out = prepared(cell, {"calibration": options.calibration, "held_out": options.held_out})
    results["machine"] = here
    results["calibration"] = json.loads(ids.with_suffix(".json").read_text(encoding="utf-8"))
    for position, (number, engine) in enumerate(todo):
        if engine not in warm:
            warm.add(engine)
            warm_up(engine)
        run: dict[str, Any] = {"engine": engine, "round": number}
        created = datetime.now(UTC).isoformat(timespec="seconds")
        row, said = engine_run(cell, engine, base, ids, folder_of(cell, run), options.limit)
        run.update(created=created, **row)
        say(f"{cell.name} | {engine} | round {number + 1} | " + row.get("failed", f"{row['process_wall']} s"))
        results["runs"].append(run)
        if said:
            results["settings"][engine] = said
        cell.write(results)
        if number:
            shutil.rmtree(folder_of(cell, run), ignore_errors=True)
        if position + 1 == len(todo) or todo[position + 1][0] > 0:
            judge(cell, results, base, held_out)
    judge(cell, results, base, held_out)


def selected(options: argparse.Namespace) -> list[Cell]:
    """The cells that the command line asks for."""
    text = options.calibration is not None
    engines = options.engines or cells.ENGINES
    if any((options.models, options.tokens, options.bits, options.group_sizes, options.seeds)):
        return cells.chosen(
            options.models or cells.MODELS,
            options.tokens or cells.TOKENS,
            engines,
            text,
            options.bits or (4,),
            options.group_sizes or (128,),
            options.seeds or (0,),
        )
    return cells.planned(text, engines)


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=cells.SIZES)
    parser.add_argument("--tokens", nargs="*", type=int)
    parser.add_argument("--engines", nargs="*", choices=cells.ENGINES)
    parser.add_argument("--bits", nargs="*", type=int)
    parser.add_argument("--group-sizes", nargs="*", type=int)
    parser.add_argument("--seeds", nargs="*", type=int)
    parser.add_argument("--rounds", type=int, help="instead of 3, or 1 for long cells")
    parser.add_argument("--calibration", type=Path, help="a text file, instead of the docs model's own samples")
    parser.add_argument("--held-out", type=Path, help="a text file, for evaluation")
    parser.add_argument("--limit", type=float, default=14400, help="seconds a run may take")
    parser.add_argument("--force", action="store_true", help="run again what is there")
    options = parser.parse_args()
    if (options.calibration is None) != (options.held_out is None):
        parser.error("give both --calibration and --held-out, or neither")
    for name in {SCRIPTS[engine][0] for engine in options.engines or cells.ENGINES} - {None}:
        if not environments.ready(str(name)):
            parser.error(f"the environment of {name} is missing: python bench/environments.py {name}")
    warm: set[str] = set()
    for cell in selected(options):
        do(cell, options, warm)


if __name__ == "__main__":
    main()
