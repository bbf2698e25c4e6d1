"""Activations of calibration tokens between two passes through a block, in memory or in files.

Knows names, sequences and tensors; no model and no method.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEQUENCES_FIRST = 3  # dimensions of activations [sequences, tokens, width]; what comes to a router is [tokens, width]


class Pool:
    """Activations of all sequences of one model, one tensor for each name.

    Where every batch allocates its own between the temporaries of a forward pass, the allocator is left with holes of
    half their size.
    """

    def __init__(self, sequences: int) -> None:
        self._sequences = sequences
        self._tensors: dict[str, Tensor] = {}
        self._users: dict[str, set[int]] = {}
        self._rows: dict[int, slice] = {}  # where those of a batch lie, by its first sequence

    def put(self, key: str, first: int, tensor: Tensor) -> Tensor:
        """Copy the activations [sequences, ...] of a batch to where they belong."""
        if key not in self._tensors:
            shape = (self._sequences, *tensor.shape[1:])
            self._tensors[key], self._users[key] = torch.empty(shape, dtype=tensor.dtype), set()
        if first not in self._rows:
            before = max((rows.stop for rows in self._rows.values()), default=0)
            self._rows[first] = slice(before, before + len(tensor))
        self._users[key].add(first)
        return self._tensors[key][self._rows[first]].copy_(tensor)

    def drop(self, key: str, first: int) -> None:
        """Forget them; when no batch has any left, the memory is freed."""
        self._users[key].discard(first)
        if not self._users[key]:
            del self._tensors[key], self._users[key]


class Batch:
    """What is known of a few sequences between two passes through a block, in memory or in files of a folder.

    `hidden` [sequences, tokens, hidden] goes into the next block. While a block is compressed, its stages keep
    here what need not be computed twice.
    """

    def __init__(self, keywords: list[dict[str, Any]], first: int, pool: Pool, folder: Path | None = None) -> None:
        self.keywords = keywords  # by block: what the model hands it beside the hidden states
        self.first = first  # of its sequences, among all
        self._folder, self._pool = folder, pool
        self._held: dict[str, Tensor | tuple[Path, torch.Size, torch.dtype, torch.device]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor under a name, in place of the one before."""
        if self._folder is None:
            self._held[key] = self._pool.put(key, self.first, tensor) if self._pooled(tensor) else tensor
            return
        path = self._folder / f"{self.first}.{key}"
        tensor.contiguous().view(torch.uint8).cpu().numpy().tofile(path)
        self._held[key] = (path, tensor.shape, tensor.dtype, tensor.device)

    def get(self, key: str) -> Tensor:
        """The tensor kept under a name."""
        held = self._held[key]
        if isinstance(held, Tensor):
            return held
        path, shape, dtype, device = held
        return torch.from_numpy(np.fromfile(path, dtype=np.uint8)).view(dtype).reshape(shape).to(device)

    def shape(self, key: str) -> torch.Size:
        """Its shape, without reading it."""
        held = self._held[key]
        return held.shape if isinstance(held, Tensor) else held[1]

    def rows(self, key: str, chosen: Tensor | slice) -> Tensor:
        """Rows of the tensor kept under a name; of a file, little else is read."""
        held = self._held[key]
        if isinstance(held, Tensor):
            return held[chosen]
        path, shape, dtype, device = held
        tensor = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c")).view(dtype).reshape(shape)
        return tensor[chosen.cpu() if isinstance(chosen, Tensor) else chosen].clone().to(device)

    def drop(self, *keys: str) -> None:
        """Forget what is kept under these names, if anything."""
        for key in keys:
            held = self._held.pop(key, None)
            if isinstance(held, tuple):
                held[0].unlink()
            elif held is not None and self._pooled(held):
                self._pool.drop(key, self.first)

    def clear(self) -> None:
        """Forget everything."""
        self.drop(*list(self._held))

    def _pooled(self, tensor: Tensor) -> bool:
        """Whether it lies in the pool: a device's allocator leaves no holes, and what reaches a router varies."""
        return tensor.dim() == SEQUENCES_FIRST and not tensor.is_cuda

    @property
    def hidden(self) -> Tensor:
        """Hidden states [sequences, tokens, hidden]."""
        return self.get("hidden")


@dataclass(frozen=True)
class BlockActivations:
    """What goes into a block, in the compressed model and in the base."""

    compressed: list[Batch]
    base: list[Batch] | None = None  # of the same sequences or some of them; None: nothing is compared with the base
    # what the base makes of these up to the next block that the compressed model has, where sublayers or blocks are
    # pruned behind the last sublayer that stays; None: none are
    base_after_pruned: list[Batch] | None = None
    base_is_shared: bool = False  # with other variants: what goes into the base's linears is kept for them


def copied(batches: list[Batch], folder: Path | None = None) -> list[Batch]:
    """Batches of their own that set out from the same hidden states."""
    pool = Pool(sum(batch.shape("hidden")[0] for batch in batches))
    copies = [Batch(batch.keywords, batch.first, pool, folder) for batch in batches]
    for batch, copy in zip(batches, copies, strict=True):
        copy.put("hidden", batch.hidden)
    return copies


def plain(value: Any) -> Any:
    """A tensor of inference mode, or a tuple of some, as autograd takes it: a copy."""
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(plain(element) for element in value) if isinstance(value, tuple) else value
