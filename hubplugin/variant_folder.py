"""A variant's folder, from the hidden one in the making to the finished one of its name. Knows no contents.

Nothing half-written ever stands under a variant's name: a folder is made under a hidden name and renamed when whole.
"""

import shutil
from pathlib import Path

from hubplugin import report
from hubplugin.checkpoint import resume
from hubplugin.disk import changed_files
from hubplugin.report import Report

MANIFEST, CARD = "manifest.yaml", "README.md"
# folders of earlier passes, inside the one in the making
PRUNED, RECOVERED, QUANTIZED, TUNED, ADAPTED = ".pruned", ".recovered", ".quantized", ".tuned", ".adapted"
ANSWERS = ".answers"  # beside all variants: what teachers have answered, kept for later runs
WORK = (
    resume.BLOCKS,
    PRUNED,
    RECOVERED,
    QUANTIZED,
    TUNED,
    ADAPTED,
)  # what an interrupted run leaves and the next one takes up


def finished(folder: Path) -> Report | None:
    """The report of a variant whose files are all as they were when it was made, or None."""
    if not (folder / report.FILE_NAME).is_file():
        return None
    made = report.read(folder)
    # the manifest is written anew with the report, and may be of a renewal that was cut off between the two
    digests = {name: sha256 for name, sha256 in made.files.items() if name != MANIFEST}
    return made if not changed_files(folder, digests) else None


def making(out: Path, name: str) -> Path:
    """The folder of a variant in the making."""
    return out / f".{name}.part"


def standing(out: Path, name: str, blocks: int) -> str:
    """What an interrupted run leaves of a variant of so many blocks, in words; empty where it is nothing."""
    if (out / name / report.FILE_NAME).is_file():
        return f"{name} finished"
    folder = making(out, name)
    if (folder / TUNED / resume.TRAINING).is_dir():
        return f"{name} quantized, its training begun"
    if (folder / ADAPTED / resume.TRAINING).is_dir():
        return f"{name} in training"
    if count := resume.count(folder / QUANTIZED):
        return f"{name} {count} of {blocks} blocks"
    if (folder / RECOVERED / resume.TRAINING).is_dir():
        return f"{name} {'pruned, ' if (folder / PRUNED).is_dir() else ''}its training begun"
    for part, done in ((folder, ""), (folder / PRUNED, "pruned ")):
        if count := resume.count(part):
            return f"{name} {done}{count} of {blocks} blocks"
    return ""


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
