"""Folders -> runs: the reports that stand in them, and those that cannot be read.

A run is a folder of variants, as `hubplugin run` makes it; a variant's own folder asks for that variant of its run.
Knows folders and reports; no metric and no page.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hubplugin import report
from hubplugin.errors import CheckpointError
from hubplugin.report import Report


@dataclass(frozen=True)
class Made:
    """A finished variant."""

    folder: Path
    report: Report


@dataclass(frozen=True)
class Damaged:
    """A variant whose report cannot be read."""

    folder: str  # its name inside the run's
    error: CheckpointError


@dataclass
class Run:
    """Variants that stand next to each other."""

    folder: Path
    name: str = ""  # as many of the folder's last parts as tell it from the other runs
    made: list[Made] = field(default_factory=list)  # the largest first
    damaged: list[Damaged] = field(default_factory=list)


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs of the folders, in the order given, each variant once.

    Raises CheckpointError where a folder holds no report, or none that can be read: a page of it would be empty. A run
    of which some can be read is taken, with the errors of the others.
    """
    runs: dict[Path, Run] = {}
    for folder in folders:
        damaged: list[Damaged] = []
        found: list[Made] = []
        for place in _variants(folder):
            try:
                found.append(Made(folder.resolve() / place.relative_to(folder), report.read(place)))
            except CheckpointError as error:
                damaged.append(Damaged(place.name, error))
        if not found:
            raise damaged[0].error
        for one in found:
            run = runs.setdefault(one.folder.parent, Run(one.folder.parent))
            run.made += [one] if one not in run.made else []
        run.damaged += [one for one in damaged if one.folder not in [other.folder for other in run.damaged]]
    for run, name in zip(runs.values(), _names(list(runs)), strict=True):
        run.name = name
        run.made.sort(key=lambda one: -one.report.sizes.safetensors_bytes)
    return list(runs.values())


def _variants(folder: Path) -> list[Path]:
    """The folder itself where it is a variant's, else those in it; hidden ones are in the making."""
    if (folder / report.FILE_NAME).exists():
        return [folder]
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [one for one in inside if not one.name.startswith(".") and (one / report.FILE_NAME).exists()]
    if not found:
        what = "holds no report.json, and no folder with one" if folder.is_dir() else "is no folder"
        raise CheckpointError(str(folder), what, "name a folder of variants, as `hubplugin run` prints them")
    return found


def _names(folders: Sequence[Path]) -> Iterable[str]:
    """For each folder as many of its last parts as no other ends with."""
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        count = 1
        while count < len(folder.parts) and any(other[-count:] == folder.parts[-count:] for other in others):
            count += 1
        yield readable("/".join(folder.parts[-count:]))


def readable(path: str) -> str:
    """A path in characters that a page can hold: bytes that are no UTF-8 are shown as unknown characters."""
    return os.fsencode(path).decode("utf-8", "replace")
