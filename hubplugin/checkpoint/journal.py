"""Finished blocks on disk, so that a killed run goes on after the last of them.

One file per block, under its final name only when whole, holds the tensors as the variant's folder will hold them, the
rows the gate compares and what the report says of the block. It belongs to one base, one list of steps and one set of
calibration tokens, and refuses any other. Knows tensors by name; no model, no method.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from hubplugin.checkpoint import safetensors_io
from hubplugin.checkpoint.fingerprint import claim
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.report import LinearResult

FOLDER = ".blocks"  # inside the folder in the making
SAMPLE = "sample|"  # before the names of rows that are compared, never of tensors that are published


class Journal:
    """The blocks of one variant in the making, under `folder`.

    `identity` says what they were made from, by name. Raises CompressError where blocks stand there that were made
    from something else.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder / FOLDER
        claim(self.folder, identity, f"its {len(self)} finished blocks do not fit" if self else "")

    def __len__(self) -> int:
        """How many blocks are finished, from the first on."""
        count = 0
        while self._path(count).is_file():
            count += 1
        return count

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"

    def add(
        self, index: int, tensors: dict[str, Tensor], samples: dict[str, Tensor], results: list[LinearResult]
    ) -> None:
        """Keep a finished block. Raises CheckpointError where it cannot be written."""
        whole = {**tensors, **{f"{SAMPLE}{name}": rows for name, rows in samples.items()}}
        notes = {"results": json.dumps([result.model_dump() for result in results])}
        safetensors_io.put(self._path(index), whole, notes)

    def results(self, index: int) -> list[LinearResult]:
        """What the report says of a finished block."""
        with safe_open(self._path(index), "pt") as file:
            return [LinearResult.model_validate(entry) for entry in json.loads(file.metadata()["results"])]

    def samples(self, index: int) -> dict[str, Tensor]:
        """The rows of a finished block that the gate compares, by linear."""
        reader = self.reader(index)
        return {name.removeprefix(SAMPLE): reader.get(name) for name in reader.headers if name.startswith(SAMPLE)}

    def reader(self, index: int) -> Reader:
        """The tensors of a finished block."""
        return Reader(self.folder, (self._path(index).name,))

    def drop(self) -> None:
        """Forget everything: nothing will ask for these blocks again."""
        shutil.rmtree(self.folder)
