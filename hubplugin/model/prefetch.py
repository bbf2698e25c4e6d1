"""Reads a model's weights one block ahead: while one block is computed, the next comes from disk and onto the device.

A `WeightSource` around another one. Holds at most one block that nobody has asked for. Knows names and devices; no
format and no model.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hubplugin.checkpoint.weight_source import WeightSource


@dataclass(frozen=True)
class _Read:
    tensors: list[tuple[str, Tensor]]
    arrived: Any  # a CUDA event, or None on the CPU


class Prefetch:
    """`source`, whose tensors below `prefixes` are asked for in that order, each on `device` and in `dtype`."""

    def __init__(
        self, source: WeightSource, prefixes: Sequence[str], device: str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        self._source, self._device, self._dtype = source, torch.device(device), dtype
        self._next = dict(pairwise(prefixes))
        self._prefixes = set(prefixes)
        self._pending: dict[str, Future[_Read]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def __contains__(self, name: str) -> bool:
        return name in self._source

    def get(self, name: str) -> Tensor:
        """A tensor as the source has it."""
        return self._source.get(name)

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """All tensors under a prefix, by the rest of their name. What the source raised is raised here."""
        if prefix not in self._prefixes:
            yield from self._source.below(prefix)
            return
        pending = self._pending.pop(prefix, None) or self._reader.submit(self._read, prefix)
        read = pending.result()
        following = self._next.get(prefix)
        if following is not None and following not in self._pending:
            self._pending = {following: self._reader.submit(self._read, following)}  # one ahead, in whatever order
        if read.arrived is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(read.arrived)
            for _, tensor in read.tensors:
                tensor.record_stream(current)  # allocated on one stream, used and freed on another
        yield from read.tensors

    def _read(self, prefix: str) -> _Read:
        if self._stream is None:
            return _Read([(name, tensor.to(dtype=self._dtype)) for name, tensor in self._source.below(prefix)], None)
        with torch.cuda.stream(self._stream):
            tensors = []
            for name, tensor in self._source.below(prefix):
                pinned = tensor if tensor.is_pinned() else tensor.pin_memory()  # only such copies run beside work
                tensors.append((name, pinned.to(self._device, non_blocking=True).to(dtype=self._dtype)))
            return _Read(tensors, self._stream.record_event())
