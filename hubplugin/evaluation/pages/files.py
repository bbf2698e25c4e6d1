"""The page's file: where it goes, and how it is written. Knows folders and pages."""

from collections.abc import Sequence
from pathlib import Path

from hubplugin.disk import write_atomically
from hubplugin.errors import HubPluginError
from hubplugin.evaluation.pages import page, runs
from hubplugin.evaluation.pages.runs import Damaged

SUFFIXES = (".html", ".htm")


def place(folders: Sequence[Path], out: Path | None) -> Path:
    """The page's path. Raises HubPluginError for one that says it is something else, lest a manifest be overwritten."""
    path = folders[0] / page.NAME if out is None else out / page.NAME if out.is_dir() else out
    if path.suffix.lower() not in SUFFIXES:
        raise HubPluginError(f"--out {path}", "is no name of an HTML page", f"let it end in {SUFFIXES[0]}")
    return path


def write(folders: Sequence[Path], path: Path) -> list[Damaged]:
    """Write the page of all variants in the folders; what is returned are those that could not be read."""
    found = runs.read(folders)
    text = page.render(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return [one for run in found for one in run.damaged]
