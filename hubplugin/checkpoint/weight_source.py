"""What hands out weights by name: a folder, a prefetching reader, a folder with some weights replaced."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class WeightSource(Protocol):
    """Where weights come from: tensor names of a plain checkpoint, dense values."""

    def get(self, name: str) -> Tensor: ...

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]: ...

    def __contains__(self, name: str) -> bool: ...
