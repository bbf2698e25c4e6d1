"""A variant's folder, from the hidden one in the making to the finished one of its name. Knows no contents.

Nothing half-written ever stands under a variant's name: a folder is made under a hidden name and renamed when whole.
"""

import shutil
from pathlib import Path

import hubplugin
from hubplugin import report
from hubplugin.checkpoint import resume
from hubplugin.disk import changed_files
from hubplugin.manifest.schema import Document
from hubplugin.report import Report

PRUNED, RECOVERED = ".pruned", ".recovered"  # folders of earlier passes, inside the one in the making
WORK = (resume.BLOCKS, PRUNED, RECOVERED)  # what an interrupted run leaves and the next one takes up


def finished(folder: Path, document: Document, revision: str | None) -> Report | None:
    """The report of a variant that was made from exactly this manifest and revision and is still whole, or None."""
    if not (folder / report.FILE_NAME).is_file():
        return None
    made = report.read(folder)
    same = (made.manifest_sha256, made.base.revision, made.hubplugin) == (
        document.sha256,
        revision,
        hubplugin.__version__,
    )
    whole = not changed_files(folder, made.files)
    # a local base has no revision: it may have changed without a trace, so its variants are made again
    return made if same and whole and made.passed and revision is not None else None


def begin(folder: Path) -> Path:
    """The folder in the making, with nothing of an interrupted run but what the next one takes up."""
    for old in folder.iterdir() if folder.is_dir() else ():
        if old.name not in WORK:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def drop_work(folder: Path) -> None:
    """Remove what only an interrupted run would need."""
    for work in WORK:
        shutil.rmtree(folder / work, ignore_errors=True)


def finish(staging: Path, final: Path) -> None:
    """Give a whole folder its name; an older one of that name is removed first."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    staging.rename(final)
    shutil.rmtree(old, ignore_errors=True)
