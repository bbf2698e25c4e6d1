"""Safetensors in and out: names, shapes and one tensor at a time; shards of a bounded size and their index.

Knows no model, no method and no Hub.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hubplugin import folder as model_folder
from hubplugin.errors import CheckpointError
from hubplugin.estimate import SHARD_BYTES
from hubplugin.folder import INDEX, SINGLE
from hubplugin.plan import Header


class Reader:
    """A folder of safetensors, read lazily. Raises CheckpointError for a missing, truncated or corrupted file."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._shard_of: dict[str, str] = {}
        self.headers: dict[str, Header] = {}
        for shard in model_folder.shards(self.folder):
            self._read_header(shard)

    def _read_header(self, shard: str) -> None:
        path = self.folder / shard
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no dict
                    part = file.get_slice(name)
                    self._shard_of[name] = shard
                    self.headers[name] = Header(part.get_dtype(), tuple(part.get_shape()))
        except FileNotFoundError as error:
            raise CheckpointError(str(path), "is missing", "pull the model again") from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(str(path), f"truncated or corrupted: {error}", "pull the model again") from error

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def get(self, name: str) -> Tensor:
        """One tensor as stored. Raises CheckpointError where it is missing or holds NaN or infinity."""
        if name not in self._shard_of:
            raise CheckpointError(str(self.folder), f"there is no tensor {name}", "pull the model again")
        path = self.folder / self._shard_of[name]
        try:
            with safe_open(path, "pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(str(path), f"{name} cannot be read: {error}", "pull the model again") from error
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name}", "holds NaN or infinite weights", "the model itself is broken")
        return tensor

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """All tensors whose name starts with `prefix.`, by the rest of their name."""
        for name in self.headers:
            if name.startswith(prefix + "."):
                yield name[len(prefix) + 1 :], self.get(name)


class Writer:
    """Collects tensors and writes them as shards of at most `shard_bytes`, the index last.

    Shards get their final names only in `finish`, when their number is known.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = Path(folder)
        self.shard_bytes = shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; it is on disk at the latest after `finish`."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.shard_bytes:
            self._flush()
        self._pending[name] = tensor.detach().to("cpu").contiguous()
        self._pending_bytes += size
        self._total += size

    def _flush(self) -> None:
        path = self.folder / f".shard-{len(self._shards)}"
        try:
            save_file(self._pending, path, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise CheckpointError(str(path), f"cannot be written: {error}", "free disk space and run again") from error
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def finish(self) -> None:
        """Write what is left, name the shards, write the index if there are several."""
        if self._pending:
            self._flush()
        count = len(self._shards)
        if count == 1:
            os.replace(self.folder / ".shard-0", self.folder / SINGLE)
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            os.replace(self.folder / f".shard-{number}", self.folder / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def safetensors_bytes(folder: Path) -> int:
    """Bytes of all weight files of a folder."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def changed(folder: Path, digests: dict[str, str]) -> list[str]:
    """The files that are missing from a folder or no longer have the sha256 noted for them."""
    return [name for name, noted in digests.items() if not (folder / name).is_file() or sha256(folder / name) != noted]
