"""The FLOP/s that this machine reaches at dense matrix products alone: what a share of its peak is a share of.

Measured, not looked up: the same processor has another peak in every machine. Knows torch; no model and no engine.
"""

import statistics
import time
from collections.abc import Callable

import torch

SIZE = {"cpu": 1024, "cuda": 8192}  # rows and columns: large enough to reach the peak, small enough to take moments
PRODUCTS = 5  # of which the fastest counts: a ceiling is what is reached undisturbed
SLOW_SIZE = 256  # a first look, for types that a processor multiplies one number at a time
WORTH = 0.5  # of the fastest type's FLOP/s at the first look, for another type to be looked at in full


def fastest(dtypes: tuple[str, ...], device: str) -> tuple[str, float]:
    """The type in which dense products are fastest here, and their FLOP/s."""
    looks = {name: flops_per_second(name, device, SLOW_SIZE) for name in dict.fromkeys(dtypes)}
    most = max(looks.values())
    full = {name: flops_per_second(name, device, SIZE[device]) for name, look in looks.items() if look >= WORTH * most}
    best = max(full, key=lambda name: full[name])
    return best, full[best]


@torch.inference_mode()
def flops_per_second(dtype: str, device: str, size: int) -> float:
    """Of products of two matrices of `size` rows and columns, by all cores."""
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    seconds = [_seconds(lambda: left @ right, device) for _ in range(PRODUCTS + 1)][1:]  # the first one warms up
    return 2 * size**3 / min(seconds)


def _seconds(work: Callable[[], object], device: str) -> float:
    begun = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def usual(found: list[tuple[str, float]]) -> str:
    """The type that was fastest in most rounds."""
    return statistics.mode(dtype for dtype, _ in found)
