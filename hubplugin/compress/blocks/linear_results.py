"""What the report says of linears that were solved together. Knows results of steps and names; no module."""

from hubplugin.compress.blocks.solve import StepResult
from hubplugin.report import LinearResult


def of(name: str, result: StepResult, seconds: float) -> LinearResult:
    """The report's record of a step on the linears that `name` names; `seconds` of wall time."""
    return LinearResult(
        name=name,
        method=result.method,
        loss=result.loss,
        damp=result.damp,
        fallback=result.fallback,
        dead_inputs=result.dead_inputs,
        correction=result.correction,
        seconds=round(seconds, 3),
    )


def stack_name(prefix: str, names: tuple[str, ...]) -> str:
    """Full module paths of linears of one parent, as one name."""
    if len(names) == 1:
        return f"{prefix}.{names[0]}"
    parent = names[0].rsplit(".", 1)[0]
    return f"{prefix}.{parent}.{{{','.join(name.rsplit('.', 1)[1] for name in names)}}}"
