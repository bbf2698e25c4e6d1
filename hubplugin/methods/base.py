"""What every method takes and returns: a weight and its second moments in, `Compressed` out.

Knows the row of a method by its settings; no method itself, no module and no file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

from torch import Tensor

from hubplugin.checkpoint.encodings import Encoding
from hubplugin.manifest.base import StepSettings
from hubplugin.manifest.methods import row_of


@dataclass(frozen=True)
class Compressed:
    """One linear (or linears stacked by rows), compressed."""

    weight: Tensor  # dense [outputs, inputs kept]: what the next layer will see
    encoding: Encoding
    loss: float  # tr((W-W')H(W-W')^T) / tr(W H W^T)
    damp: float  # damping actually used
    fallback: str | None  # None: nothing unusual happened
    dead_inputs: int  # inputs the calibration never excited


class Solver(Protocol):
    """The module of a method that quantizes or masks one linear at a time."""

    # (second moments [inputs, inputs], settings) -> what all linears that share an input share, such as a factor
    prepare: Callable[[Tensor, Any], Any]
    # (weight [outputs, inputs], second moments, settings, prepared) -> Compressed
    compress: Callable[..., Compressed]


def solver_of(step: StepSettings) -> Solver:
    """The module that does a step, imported now."""
    return cast(Solver, import_module(row_of(step).solver))
