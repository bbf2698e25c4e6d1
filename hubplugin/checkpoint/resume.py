"""What a killed run left, so that the next one goes on from there: finished blocks, training checkpoints, decisions.

Everything is kept under a fingerprint of what it was made from and written atomically: under its final name a file is
complete. Knows names, tensors and JSON. Knows no model, no method and no training.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from safetensors import safe_open
from torch import Tensor

from hubplugin import disk
from hubplugin.checkpoint import safetensors_io
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CompressError
from hubplugin.report import LinearResult

BLOCKS, TRAINING = ".blocks", ".training"  # folders inside the one in the making
FINGERPRINT_FILE = "fingerprint.json"
FINISHED = "done"  # the checkpoint of a training that is complete; its notes are the record
SAMPLE = "sample|"  # before the names of rows that the gate compares, never of tensors that are published


Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Fingerprint:
    """What work is made from: a name and a digest (or version) of each of its inputs."""

    digests: Mapping[str, str] = field(default_factory=dict)

    def changed(self, other: "Fingerprint") -> list[str]:
        """The names of the inputs that differ, sorted."""
        names = self.digests.keys() | other.digests.keys()
        return sorted(name for name in names if self.digests.get(name) != other.digests.get(name))


def _open(folder: Path, fingerprint: Fingerprint, contents: str) -> None:
    """Open a folder for one fingerprint, new or as a killed run left it, and remove half-written files.

    `contents` says in words what in it would fit no other fingerprint. Where it is empty, the folder is taken over.
    Raises CompressError where it was begun with another fingerprint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for half_written in folder.glob("*.part"):
        half_written.unlink()
    path = folder / FINGERPRINT_FILE
    before = Fingerprint(json.loads(path.read_text("utf-8"))) if path.is_file() else Fingerprint()
    changed = before.changed(fingerprint)
    if changed and contents:
        raise CompressError(
            str(folder.parent),
            f"was begun with another {', '.join(changed)}, and {contents}",
            "run what it was begun with, or remove that folder to start over",
        )
    if changed:
        disk.write_atomically(path, json.dumps(dict(fingerprint.digests), indent=1))


def count(folder: Path) -> int:
    """How many blocks are finished in BLOCKS under `folder`, from the first on."""
    done = 0
    while (folder / BLOCKS / _block_name(done)).is_file():
        done += 1
    return done


def is_trained(folder: Path) -> bool:
    """Whether a training that writes to a folder is complete."""
    return (folder / TRAINING / f"{FINISHED}.safetensors").is_file()


def _block_name(index: int) -> str:
    return f"block-{index:05d}.safetensors"


class FinishedBlocks:
    """The finished blocks of one variant, in BLOCKS under `folder`: one safetensors file per block.

    A file holds the tensors as the variant's folder will hold them, the rows that the gate compares and the block's
    lines of the report. Raises CompressError where blocks of another fingerprint are there.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint) -> None:
        self.folder = folder / BLOCKS
        _open(self.folder, fingerprint, f"its {len(self)} finished blocks do not fit" if self else "")

    def __len__(self) -> int:
        """How many blocks are finished, from the first on."""
        return count(self.folder.parent)

    def _path(self, index: int) -> Path:
        return self.folder / _block_name(index)

    def add(
        self, index: int, tensors: dict[str, Tensor], samples: dict[str, Tensor], results: list[LinearResult]
    ) -> None:
        """Keep a finished block. Raises CheckpointError where it cannot be written."""
        tensors = {**tensors, **{f"{SAMPLE}{name}": rows for name, rows in samples.items()}}
        metadata = {"results": json.dumps([result.model_dump() for result in results])}
        safetensors_io.write_atomically(self._path(index), tensors, metadata)

    def results(self, index: int) -> list[LinearResult]:
        """A finished block's lines of the report."""
        with safe_open(self._path(index), "pt") as file:
            return [LinearResult.model_validate(entry) for entry in json.loads(file.metadata()["results"])]

    def samples(self, index: int) -> dict[str, Tensor]:
        """The rows of a finished block that the gate compares, by linear: float32 [rows, inputs]."""
        reader = self.reader(index)
        return {name.removeprefix(SAMPLE): reader.get(name) for name in reader.headers if name.startswith(SAMPLE)}

    def reader(self, index: int) -> Reader:
        """The tensors of a finished block."""
        return Reader(self.folder, (self._path(index).name,))

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder)


class TrainingCheckpoints:
    """Checkpoints of a training, in TRAINING under `folder`: tensors by name and notes (JSON), one file for each.

    Raises CompressError where checkpoints of another fingerprint are there.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint) -> None:
        self.folder = folder / TRAINING
        trained = any(self.folder.glob("*.safetensors"))
        _open(self.folder, fingerprint, "what it has trained so far does not fit" if trained else "")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def save(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Write a checkpoint, in place of an older one of that name. Raises CheckpointError where it cannot."""
        safetensors_io.write_atomically(self._path(name), tensors, {"notes": json.dumps(notes)})

    def notes(self, name: str) -> dict[str, Any]:
        """The notes of a checkpoint."""
        with safe_open(self._path(name), "pt") as file:
            notes: dict[str, Any] = json.loads(file.metadata()["notes"])
        return notes

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a checkpoint, on the CPU. Raises CheckpointError where they are damaged."""
        reader = Reader(self.folder, (self._path(name).name,))
        return {key: reader.get(key) for key in reader.headers}

    def load_or_make(self, kind: type[Record], make: Callable[[], Record]) -> Record:
        """The record of a training that is complete, else that of `make`, after which no other checkpoint is kept."""
        if FINISHED in self:
            return kind.model_validate(self.notes(FINISHED))
        record = make()
        self.save(FINISHED, {}, record.model_dump(mode="json"))
        for path in self.folder.glob("*.safetensors"):
            if path != self._path(FINISHED):
                path.unlink()
        return record


@dataclass(frozen=True)
class Decision(Generic[Record]):
    """A record that took measurements to make: one JSON file, which also holds its fingerprint.

    A record of another fingerprint is made again and replaced: no weights are lost with it.
    """

    path: Path
    fingerprint: Fingerprint
    kind: type[Record]

    def load(self) -> Record | None:
        """The record from the file, where there is one of this fingerprint."""
        if not self.path.is_file():
            return None
        stored = json.loads(self.path.read_text("utf-8"))
        if self.fingerprint.changed(Fingerprint(stored["fingerprint"])):
            return None
        return self.kind.model_validate(stored["record"])

    def save(self, record: Record) -> Record:
        """Write the record, in place of any other."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stored = {"fingerprint": dict(self.fingerprint.digests), "record": record.model_dump(mode="json")}
        disk.write_atomically(self.path, json.dumps(stored, indent=1))
        return record

    def load_or_make(self, make: Callable[[], Record]) -> Record:
        """The record from the file, else a new one, which is written there."""
        found = self.load()
        return self.save(make()) if found is None else found
