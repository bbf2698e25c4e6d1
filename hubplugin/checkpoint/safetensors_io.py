"""Safetensors in and out: names, shapes and one tensor at a time; shards of a bounded size and their index.

Knows files and tensors by name. Knows no model, no method and no Hub.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hubplugin import interrupt
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.model_folder import INDEX, SINGLE
from hubplugin.errors import CheckpointError
from hubplugin.limits import SHARD_BYTES

FINITE_CHECK = 2**22  # values that are checked for NaN and infinity at once
MAPPED_BYTES = 8 * 2**20  # read of a file before it is opened again: what was read of an open one counts as memory
TORCH_DTYPES = {  # by safetensors' names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Reader:
    """A folder of safetensors, read lazily. Raises CheckpointError for a missing, truncated or corrupted file.

    Reads the files that are named, else those of the folder's model.
    """

    def __init__(self, folder: Path, files: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        self._shard_of: dict[str, str] = {}
        self.headers: dict[str, Header] = {}
        self._opened: tuple[str, Any, frozenset[str], int] = ("", None, frozenset(), 0)  # see `_read`
        for shard in model_folder.shards(self.folder) if files is None else files:
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
            with interrupt.held():
                tensor = self._read(self._shard_of[name], name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(str(path), f"{name} cannot be read: {error}", "pull the model again") from error
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise CheckpointError(f"{path}: {name}", "holds NaN or infinite weights", "the model itself is broken")
        return tensor

    def _read(self, shard: str, name: str) -> Tensor:
        """A tensor of a shard, which stays open for the next: opening it parses all of its header.

        An open one hands out the same memory twice, with what was written to it meanwhile: no tensor is read twice.
        """
        opened, file, names, size = self._opened  # a shard and its reader, what was read of it, and its bytes
        if opened != shard or name in names or size > MAPPED_BYTES:
            file, names, size = safe_open(self.folder / shard, "pt"), frozenset(), 0
        tensor: Tensor = file.get_tensor(name)
        self._opened = shard, file, names | {name}, size + tensor.nbytes
        return tensor

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """All tensors whose name starts with `prefix.`, by the rest of their name."""
        for name in self.headers:
            if name.startswith(prefix + "."):
                yield name[len(prefix) + 1 :], self.get(name)


def _is_finite(tensor: Tensor) -> bool:
    # one infinity or NaN makes the sum one too, so values are checked one by one only where the sum is not finite. In
    # pieces, because a sum in float32 begins with a copy in float32; torch has no isfinite of float8
    return all(
        bool(torch.isfinite(piece.sum(dtype=torch.float32))) or bool(torch.isfinite(piece.float()).all())
        for piece in tensor.reshape(-1).split(FINITE_CHECK)
    )


def write(
    folder: Path, headers: Mapping[str, Header], get: Callable[[str], Tensor], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as shards of at most `shard_bytes`, in the order of `headers`, and the index last.

    One tensor is in memory at a time: the headers say where it lies in its file. Raises CheckpointError where a
    tensor is not what its header says, or the disk is full.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, header in headers.items():
        if shards[-1] and size + header.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += header.bytes
    files = [
        SINGLE if len(shards) == 1 else f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        for number in range(len(shards))
    ]
    for file, names in zip(files, shards, strict=True):
        _write_shard(folder / file, {name: headers[name] for name in names}, get)
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(header.bytes for header in headers.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _write_shard(path: Path, headers: Mapping[str, Header], get: Callable[[str], Tensor]) -> None:
    """One safetensors file: 8 bytes of length, the header as JSON, the tensors; wide dtypes first aligns them all."""
    order = sorted(headers, key=lambda name: (-headers[name].itemsize, name))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        header = headers[name]
        entries[name] = {"dtype": header.dtype, "shape": list(header.shape), "data_offsets": [end, end + header.bytes]}
        end += header.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                _write_tensor(file, name, headers[name], get(name))
        os.replace(part, path)
    except OSError as error:
        raise CheckpointError(str(part), f"cannot be written: {error}", "free disk space and run again") from error


def _write_tensor(file: BinaryIO, name: str, header: Header, tensor: Tensor) -> None:
    if tuple(tensor.shape) != header.shape or TORCH_DTYPES[header.dtype] != tensor.dtype:
        raise CheckpointError(
            name, f"is {tensor.dtype} {list(tensor.shape)}, not {header.dtype} {list(header.shape)}", "run again"
        )
    file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_atomically(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Tensors and metadata as one file; under its name it is complete or absent. Until then it is called *.part.

    Raises CheckpointError where it cannot be written.
    """
    part = path.with_suffix(".part")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, part, metadata=metadata)
        os.replace(part, path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(part), f"cannot be written: {error}", "free disk space and run again") from error


def safetensors_bytes(folder: Path) -> int:
    """Bytes of all weight files of a folder."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
