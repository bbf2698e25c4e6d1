"""Which stage a device was in, and when, without stopping it; and what the device could have done at best.

The engine is not told: its functions are wrapped while a run lasts. At every moment exactly one stage runs, the
innermost, so the stages' seconds add up to the whole run's.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hubplugin.checkpoint import formats
from hubplugin.kernels.second_moments import SecondMoments
from hubplugin.kernels.xtx_cuda import add_lower, ieee_products
from hubplugin.methods import linear_algebra, qep
from hubplugin.methods.gptq import gptq
from hubplugin.model import block_runner, staged_block

OTHER = "everything else"
# what is wrapped, and the stage it is; in the order in which a table shows them
WRAPPED: tuple[tuple[Any, str, str], ...] = (
    (block_runner.Model, "_load", "weights to the device"),
    (block_runner.Model, "embed", "forward"),
    (block_runner.Model, "capture_inputs", "forward"),
    (block_runner.Model, "forward_block", "forward"),
    (staged_block, "residual", "forward"),
    (SecondMoments, "add", "second moments"),
    (SecondMoments, "matrix", "second moments"),
    (qep.TargetCorrection, "add", "cross moments"),
    (qep, "corrected", "target correction"),
    (linear_algebra, "factor", "factor"),
    (gptq, "_sweep", "sweep"),
    (gptq, "compress", "reorder and dequantize"),
    (linear_algebra, "relative_loss", "loss"),
    (formats, "tensors", "pack"),
)
TO_HOST = "codes to the host"
STAGES = (*dict.fromkeys(stage for _, _, stage in WRAPPED), TO_HOST, OTHER)


class TrainingCheckpoints:
    """A timeline of stage changes: CUDA events, which cost the device nothing, or a clock where there is none."""

    def __init__(self, device: str) -> None:
        self._cuda = device != "cpu"
        self._stages = [OTHER]
        self._marks: list[tuple[str, Any]] = []
        self._mark()

    def _mark(self) -> None:
        moment: Any = time.perf_counter()
        if self._cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._marks.append((self._stages[-1], moment))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """While this holds, and nothing inside says otherwise, time is this stage's."""
        self._stages.append(name)
        self._mark()
        try:
            yield
        finally:
            self._stages.pop()
            self._mark()

    def seconds(self) -> dict[str, float]:
        """Seconds by stage up to now."""
        self._mark()
        if self._cuda:
            torch.cuda.synchronize()
        found = dict.fromkeys(STAGES, 0.0)
        for (stage, begun), (_, ended) in pairwise(self._marks):
            found[stage] += begun.elapsed_time(ended) / 1000 if self._cuda else ended - begun
        return found


@contextmanager
def watched(marks: TrainingCheckpoints) -> Iterator[None]:
    """While this holds, the engine's functions say which stage they are."""
    with ExitStack() as stack:
        for owner, name, stage in WRAPPED:
            wrap = _generator if name == "capture_inputs" else _function
            stack.enter_context(mock.patch.object(owner, name, wrap(marks, stage, getattr(owner, name))))
        yield


def _function(marks: TrainingCheckpoints, stage: str, whole: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any, **keywords: Any) -> Any:
        with marks.stage(stage):
            return whole(*inputs, **keywords)

    return run


def _generator(
    marks: TrainingCheckpoints, stage: str, whole: Callable[..., Iterator[Any]]
) -> Callable[..., Iterator[Any]]:
    def run(*inputs: Any, **keywords: Any) -> Iterator[Any]:
        values = whole(*inputs, **keywords)
        while True:
            with marks.stage(stage):
                try:
                    value = next(values)
                except StopIteration:
                    return
            yield value

    return run


def ceilings(device: str, size: int, length: int) -> dict[str, float]:
    """What the device does at best: products of size x size, copies of `length` bytes. Operations or bytes per second.

    Of float32 products the IEEE ones; of second moments those of `length` / (2 * size) tokens, counted as one triangle.
    """
    generator = torch.Generator(device).manual_seed(0)
    wide = torch.randn(size, size, device=device, generator=generator)
    half = wide.bfloat16()
    host = torch.empty(length, dtype=torch.uint8, pin_memory=device != "cpu")
    there = torch.empty(length, dtype=torch.uint8, device=device)
    again = torch.empty_like(there)
    products = 2 * size**3
    with ieee_products():
        fp32 = products / best(device, lambda: wide @ wide)
    found = {
        "bf16 product": products / best(device, lambda: half @ half),
        "fp32 product": fp32,
        "copy on the device": 2 * length / best(device, lambda: again.copy_(there)),
        "copy to the device": length / best(device, lambda: there.copy_(host, non_blocking=True)),
        "copy to the host": length / best(device, lambda: host.copy_(there, non_blocking=True)),
    }
    if device != "cpu":
        x = torch.randn(length // (2 * size), size, device=device, generator=generator).bfloat16()
        found |= moments(x)
    return found


def moments(x: Tensor) -> dict[str, float]:
    """The rate of the engine's second moments and of the library's product with a float32 result, one triangle each."""
    total = torch.zeros(x.shape[1], x.shape[1], device=x.device)
    triangle = x.shape[0] * x.shape[1] ** 2
    device = str(x.device)
    return {
        "second moments, ours": triangle / best(device, lambda: add_lower(total, x)),
        "second moments, torch.mm": triangle / best(device, lambda: torch.mm(x.T, x, out_dtype=torch.float32)),
    }


def best(device: str, work: Callable[[], Any], tries: int = 10) -> float:
    """The fewest seconds of a few tries, the first uncounted."""
    took = []
    for _ in range(tries + 1):
        marks = TrainingCheckpoints(device)
        with marks.stage(OTHER):
            work()
        took.append(marks.seconds()[OTHER])
    return max(min(took[1:]), 1e-9)
