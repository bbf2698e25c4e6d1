"""Reading ahead: the same tensors, one block early and never two."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hubplugin.model.prefetch import Prefetch

PREFIXES = ["block.0", "block.1", "block.2"]


class Shelf:
    """A source that notes what was read; reading past `broken` fails."""

    def __init__(self, broken: str = "") -> None:
        self.read: list[str] = []
        self.seen = {prefix: threading.Event() for prefix in PREFIXES}
        self._broken = broken

    def __contains__(self, name: str) -> bool:
        return name == "embed.weight"

    def get(self, name: str) -> Tensor:
        return torch.ones(1)

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        self.read.append(prefix)
        if prefix in self.seen:
            self.seen[prefix].set()
        if prefix == self._broken:
            raise ValueError(prefix)
        yield "weight", torch.full((2,), float(len(self.read)), dtype=torch.bfloat16)


def test_the_next_block_is_read_while_one_is_worked_on_and_no_further() -> None:
    shelf = Shelf()
    ahead = Prefetch(shelf, PREFIXES, dtype=torch.float32)
    first = dict(ahead.below("block.0"))
    assert first["weight"].dtype == torch.float32 and first["weight"][0] == 1
    assert shelf.seen["block.1"].wait(30)  # nobody asked for it yet
    assert shelf.read == ["block.0", "block.1"]
    assert dict(ahead.below("block.1"))["weight"][0] == 2
    assert dict(ahead.below("block.2"))["weight"][0] == 3
    assert shelf.read == PREFIXES


def test_any_order_gives_the_right_tensors() -> None:
    shelf = Shelf()
    ahead = Prefetch(shelf, PREFIXES)
    assert [name for name, _ in ahead.below("block.2")] == ["weight"]
    assert [name for name, _ in ahead.below("block.1")] == ["weight"]
    assert shelf.read == ["block.2", "block.1"] or shelf.read == ["block.2", "block.1", "block.2"]


def test_what_is_no_block_comes_straight_from_the_source() -> None:
    ahead = Prefetch(Shelf(), PREFIXES, dtype=torch.float32)
    assert dict(ahead.below("embed"))["weight"].dtype == torch.bfloat16
    assert "embed.weight" in ahead and "other" not in ahead and ahead.get("embed.weight") == 1


def test_a_failure_is_raised_where_the_block_is_asked_for() -> None:
    shelf = Shelf(broken="block.1")
    ahead = Prefetch(shelf, PREFIXES)
    list(ahead.below("block.0"))
    assert shelf.seen["block.1"].wait(30)
    with pytest.raises(ValueError, match=r"block\.1"):
        list(ahead.below("block.1"))


@pytest.mark.gpu
def test_blocks_arrive_on_the_device() -> None:
    ahead = Prefetch(Shelf(), PREFIXES, "cuda", torch.bfloat16)
    for number, prefix in enumerate(PREFIXES, 1):
        weight = dict(ahead.below(prefix))["weight"]
        assert weight.is_cuda and weight.dtype == torch.bfloat16 and bool((weight == number).all())
