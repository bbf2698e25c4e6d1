"""Where a training stands, on disk, so that a killed run goes on from there.

One file per mark, under its final name only when whole: tensors by name, and notes. All marks belong to one identity
(what is trained, towards what, on what), and any other is refused. Knows no model and no training.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from hubplugin.checkpoint import safetensors_io
from hubplugin.checkpoint.fingerprint import claim
from hubplugin.checkpoint.safetensors_io import Reader

FOLDER = ".training"  # inside the folder in the making


class TrainingCheckpoints:
    """What a training under `folder` has kept. Raises CompressError where it began as another one than `identity`."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder / FOLDER
        trained = any(self.folder.glob("*.safetensors"))
        claim(self.folder, identity, "what it has trained so far does not fit" if trained else "")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def put(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Set a mark, in place of an older one of that name. Raises CheckpointError where it cannot be written."""
        safetensors_io.put(self._path(name), tensors, {"notes": json.dumps(notes)})

    def notes(self, name: str) -> dict[str, Any]:
        """The notes of a mark."""
        with safe_open(self._path(name), "pt") as file:
            found: dict[str, Any] = json.loads(file.metadata()["notes"])
        return found

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a mark, on the CPU. Raises CheckpointError where they are damaged."""
        reader = Reader(self.folder, (self._path(name).name,))
        return {key: reader.get(key) for key in reader.headers}

    def keep(self, name: str) -> None:
        """Forget every mark but one."""
        for path in self.folder.glob("*.safetensors"):
            if path != self._path(name):
                path.unlink()
