"""Memory, planned and measured: what several shapes take, and a model several times larger than the memory there is.

    python bench/memory.py shapes     # a few minutes; each case in a process of its own
    python bench/memory.py limit      # ours and the rivals (bench/environments.py) under a limit the kernel enforces
    python bench/memory.py page       # docs/memory.md from bench/results

Resident memory at its highest (VmHWM) is what counts, the mapped pages of the base's files among it. Memory does not
depend on the number of blocks, so shapes have few. This file runs the children; `memory_child.py` is one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import environments
import measure

HERE = Path(__file__).parent
WORK, RESULTS = HERE / ".work", HERE / "results" / "memory"
PAGE = HERE.parent / "docs" / "memory.md"
SHAPES_FILE, LIMIT_FILE = RESULTS / "shapes.json", RESULTS / "limit.json"
CASES: list[dict[str, Any]] = [
    {"model": "docs", "tokens": 8192},
    {"model": "docs", "tokens": 32768},
    {"model": "docs", "tokens": 32768, "spill": True},
    {"model": "75m-3-layers", "tokens": 8192},
    {"model": "75m-3-layers", "tokens": 8192, "qep": False},
    {"model": "75m-3-layers", "tokens": 8192, "prune": True},
    {"model": "75m-3-layers", "tokens": 32768},
    {"model": "75m-3-layers", "tokens": 32768, "spill": True},
    {"model": "75m-3-layers", "tokens": 131072},
    {"model": "75m", "tokens": 8192},
    {"model": "350m-3-layers", "tokens": 8192},
    {"model": "350m-3-layers", "tokens": 8192, "qep": False},
    {"model": "350m-3-layers", "tokens": 8192, "prune": True},
    {"model": "350m-3-layers", "tokens": 32768},
    {"model": "350m-3-layers", "tokens": 32768, "spill": True},
]
BIG = "900m"  # the model that does not fit
LIMIT = 704 * 2**20  # bytes
PATIENCE = 1800  # seconds for each engine
PLAIN = {"qep": False, "clip_search": False}  # GPTQ as the others do it
# engine -> its environment, script and case, calibration sequences of 512 tokens
ENGINES: dict[str, tuple[str | None, str, dict[str, Any] | None, int]] = {
    "ours": (None, "memory_child.py", PLAIN, 2),
    "ours, default settings": (None, "memory_child.py", {}, 32),
    "llmcompressor": ("llmcompressor", "rival_llmcompressor.py", None, 2),
    "gptqmodel": ("gptqmodel", "rival_gptqmodel.py", None, 2),
}


def say(line: str) -> None:
    """One line of talk on stderr."""
    print(line, file=sys.stderr, flush=True)


def environment() -> dict[str, str]:
    """No GPU, no network, waiting threads asleep."""
    offline = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **offline}


def made(arguments: list[str]) -> list[Path]:
    """What bench/models.py prints: paths of a base folder and of token ids."""
    command = [sys.executable, str(HERE / "models.py"), *arguments]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return [Path(line) for line in done.stdout.decode().split("\n") if line]


def shapes(only: str) -> None:
    """Every case in a process of its own; what is measured replaces what the file holds of that case."""
    rows = json.loads(SHAPES_FILE.read_text(encoding="utf-8"))["rows"] if SHAPES_FILE.exists() else []
    for case in CASES:
        if only not in case["model"]:
            continue
        base, ids = made([case["model"], str(WORK), "--sequences", str(case["tokens"] // 512)])
        out, report = WORK / "memory", WORK / "memory.json"
        shutil.rmtree(out, ignore_errors=True)
        arguments = ["--base", base, "--tokens", ids, "--out", out, "--report", report, "--case", json.dumps(case)]
        command = [sys.executable, str(HERE / "memory_child.py"), *map(str, arguments)]
        subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
        row = {**case, **json.loads(report.read_text(encoding="utf-8"))}
        shutil.rmtree(out)
        rows = [other for other in rows if any(other.get(key) != row.get(key) for key in _KEYS)]
        rows.append(row)
        say(f"{case}: planned {row['planned'] >> 20} MiB, measured {row['measured'] >> 20} MiB")
        _write(SHAPES_FILE, {"machine": measure.machine(), "rows": rows})


_KEYS = ("model", "tokens", "qep", "prune", "spill")


def limit(only: str) -> None:
    """A model of several times the limit: every engine alone in a control group that may take LIMIT bytes."""
    base = made([BIG, str(WORK)])[0]
    weights = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    before = json.loads(LIMIT_FILE.read_text(encoding="utf-8")) if LIMIT_FILE.exists() else {}
    runs = before["runs"] if (before.get("limit"), before.get("weights")) == (LIMIT, weights) else []
    try:
        for engine, (name, script, case, sequences) in ENGINES.items():
            if only not in engine:
                continue
            _, ids = made([BIG, str(WORK), "--sequences", str(sequences)])
            runs = [run for run in runs if run["engine"] != engine]
            runs.append({"engine": engine, "tokens": sequences * 512, **_limited(name, script, case, base, ids)})
            say(f"{engine}: {runs[-1]}")
            found = {"machine": measure.machine(), "limit": LIMIT, "weights": weights}
            _write(LIMIT_FILE, {**found, "by": group_by(), "runs": runs})
    finally:
        shutil.rmtree(base)


def _limited(name: str | None, script: str, case: dict[str, Any] | None, base: Path, ids: Path) -> dict[str, Any]:
    out, report, log = WORK / "limited", WORK / "limited.json", WORK / "limited.log"
    shutil.rmtree(out, ignore_errors=True)
    report.unlink(missing_ok=True)
    for file in base.glob("*.safetensors"):  # what others left in the page cache would be charged to nobody here
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    python = str(environments.python(name)) if name else sys.executable
    command = [python, str(HERE / script), "--base", base, "--tokens", ids, "--out", out, "--report", report]
    if case is not None:
        command += ["--case", json.dumps(case)]
    group = Group("hubplugin-limit", LIMIT)
    try:
        begun = time.monotonic()
        cost = measure.run(group.entering([str(part) for part in command]), environment(), log, PATIENCE)
        row: dict[str, Any] = {
            "status": cost.status,
            "seconds": round(time.monotonic() - begun, 1),
            "peak_resident": cost.peak,
            "killed_by_kernel": group.kills() > 0,
        }
    finally:
        group.remove()
    row["finished"] = cost.status == 0 and report.exists() and bool(list(out.glob("*.safetensors")))
    row["written"] = sum(file.stat().st_size for file in out.glob("*.safetensors")) if out.exists() else 0
    if row["finished"]:
        row["said"] = json.loads(report.read_text(encoding="utf-8"))
    else:
        row["last_words"] = measure.why(log, cost)
    shutil.rmtree(out, ignore_errors=True)
    return row


class Group:
    """A control group below the one this process is in, of whichever version memory is governed by. Needs root."""

    def __init__(self, name: str, limit: int) -> None:
        self._second, parent = _own_group()
        self._path = parent / name
        self._path.mkdir(exist_ok=True)
        (self._path / ("memory.max" if self._second else "memory.limit_in_bytes")).write_text(str(limit))

    def entering(self, command: list[str]) -> list[str]:
        """The command, run inside the group."""
        return ["sh", "-c", f'echo $$ > {self._path}/cgroup.procs && exec "$@"', "sh", *command]

    def kills(self) -> int:
        """How many processes the kernel killed for memory."""
        file = self._path / ("memory.events" if self._second else "memory.oom_control")
        return int(dict(line.split() for line in file.read_text().splitlines()).get("oom_kill", 0))

    def remove(self) -> None:
        """Needs that all its processes have ended."""
        for _ in range(50):
            try:
                self._path.rmdir()
            except OSError:
                time.sleep(0.1)
            else:
                return


def _own_group() -> tuple[bool, Path]:
    """Whether memory is governed by control groups of version 2, and the group of this process."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return False, Path("/sys/fs/cgroup/memory") / path.lstrip("/")
    return True, Path("/sys/fs/cgroup") / path.lstrip("/")


def group_by() -> str:
    """What enforced the limit, in words."""
    return f"control group, version {2 if _own_group()[0] else 1}"


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["shapes", "limit", "page"])
    parser.add_argument("--only", default="", help="models, or engines, whose name holds this")
    options = parser.parse_args()
    if options.what == "shapes":
        shapes(options.only)
    elif options.what == "limit":
        limit(options.only)
    import memory_page

    PAGE.write_text(memory_page.render(SHAPES_FILE, LIMIT_FILE), encoding="utf-8")


if __name__ == "__main__":
    main()
