"""What every engine of the benchmark is asked, and the clock each one runs under. One process, one run.

An engine is a script that imports this file, its own library inside `stage("import")`, and does the rest inside
`load`, `quantize` and `save`. Only the standard library is used here: the file is imported in every environment. It
knows no engine and no model.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def ask() -> argparse.Namespace:
    """The command line of every engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, required=True, help="the model folder to compress")
    parser.add_argument("--tokens", type=Path, required=True, help="calibration ids: .npy, int32 [sequences, tokens]")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--recipe", default="default", help="for engines that have several")
    parser.add_argument("--report", type=Path, required=True, help="where stage times and settings go, JSON")
    return parser.parse_args()


class Clock:
    """Wall and CPU seconds by stage, and the resident memory that importing alone took."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.import_bytes = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        wall, cpu = time.monotonic(), _cpu()
        yield
        self.wall[name] = round(time.monotonic() - wall, 3)
        self.cpu[name] = round(_cpu() - cpu, 3)
        if name == "import":
            self.import_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def write(self, path: Path, version: str, settings: dict[str, Any], packages: tuple[str, ...]) -> None:
        """Write the report of this run; `settings` are those that were in force, by the library's own names."""
        from importlib import metadata

        report = {
            "version": version,
            "packages": {name: metadata.version(name) for name in packages},
            "settings": settings,
            "wall": self.wall,
            "cpu": self.cpu,
            "import_bytes": self.import_bytes,
        }
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(report, indent=1), encoding="utf-8")
        os.replace(part, path)


def _cpu() -> float:
    """User and system seconds of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
