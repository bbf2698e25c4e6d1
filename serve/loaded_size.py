"""Bytes of a model's weights once vLLM has loaded them on a CPU: more than its files where codes become dense weights.

Reads the headers of safetensors files; no weights.
"""

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from serve import codes

WORDS = {"I32": 32, "U8": 8, "I8": 8}  # bits of what codes are packed into, by safetensors' names
HALF = 2  # bytes of a dense weight


def stored_bytes(folder: Path) -> int:
    """Of the safetensors in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def loaded_bytes(folder: Path, config: dict[str, Any]) -> int:
    """Bytes in half precision, rounded up where linears differ in width."""
    bits = codes.unpacked_bits(config)
    if bits is None:
        return stored_bytes(folder)
    return sum(_unpacked(file, bits) for file in folder.glob("*.safetensors"))


def _unpacked(file: Path, bits: int) -> int:
    """Bytes of a file whose codes, so many bits each, are dense weights."""
    total = file.stat().st_size
    with safe_open(file, "numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no mapping
            part = tensors.get_slice(name)
            if word := WORDS.get(part.get_dtype()):
                words = math.prod(part.get_shape())
                total += words * word // bits * HALF - words * word // 8
    return total
