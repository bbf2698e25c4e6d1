"""One tensor of a safetensors header: dtype, shape, bytes.

Knows sizes. Knows no file and no torch, so that `plan` may use it.
"""

from dataclasses import dataclass

FLOATS = {"BF16": 2, "F16": 2, "F32": 4}  # safetensors dtypes a base may hold, and their bytes
BYTES = {**FLOATS, "F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8}


@dataclass(frozen=True)
class Header:
    """One tensor of a safetensors header."""

    dtype: str  # safetensors' names: BF16, F16, F32, I32, ...
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """Stored size, of the data alone."""
        return self.count * self.itemsize
