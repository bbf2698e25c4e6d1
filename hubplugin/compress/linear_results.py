"""What the report says of a linear, or of linears that were solved together. Knows methods' results; no module."""

import time

from hubplugin.methods.base import Compressed
from hubplugin.methods.linear_algebra import Prepared
from hubplugin.report import LinearResult


def of(name: str, method: str, done: Compressed, begun: float, share: float | None = None) -> LinearResult:
    """Of a method's result; `begun` is when it began, `share` how much of the correction of its target was taken."""
    return LinearResult(
        name=name,
        method=method,
        loss=done.loss,
        damp=done.damp,
        fallback=done.fallback,
        dead_inputs=done.dead_inputs,
        correction=share,
        seconds=round(time.monotonic() - begun, 3),
    )


def fitted(name: str, prepared: Prepared, share: float, begun: float) -> LinearResult:
    """Of linears that stay dense and were fitted to the base's outputs."""
    return LinearResult(
        name=name,
        method="refit",
        loss=None,
        damp=prepared.factor.damp,
        fallback=prepared.factor.fallback,
        dead_inputs=int(prepared.dead.sum()),
        correction=share,
        seconds=round(time.monotonic() - begun, 3),
    )


def stack_name(prefix: str, names: tuple[str, ...]) -> str:
    """Full module paths of linears of one parent, as one name."""
    if len(names) == 1:
        return f"{prefix}.{names[0]}"
    parent = names[0].rsplit(".", 1)[0]
    return f"{prefix}.{parent}.{{{','.join(name.rsplit('.', 1)[1] for name in names)}}}"
