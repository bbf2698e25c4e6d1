"""METHODS: one row for every method that a step may name, ours and those that other distributions bring.

A row says what a manifest may set, what kind of work it is, which module does it, and what a card calls it. The module
is named, not imported: a manifest is read without torch. Another distribution adds a row by an entry point in the group
`hubplugin.methods` whose object is a `Method` (docs/contributing.md, Add a method).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from typing import cast

from hubplugin.errors import ManifestError
from hubplugin.manifest.base import StepSettings
from hubplugin.manifest.gptq import Gptq, Quantization
from hubplugin.manifest.masks import Masking, SparseGpt, Wanda
from hubplugin.manifest.prune import Prune
from hubplugin.manifest.recover import Recover

GROUP = "hubplugin.methods"  # of entry points


class Kind(Enum):
    """What a step does to a model. At most one step of a kind makes sense in a variant."""

    PRUNE = "prune"  # removes channels, heads, layers: the shape changes
    RECOVER = "recover"  # trains all weights back towards the base
    QUANTIZE = "quantize"  # stores codes in place of weights
    MASK = "mask"  # sets single weights to zero: shape and dtype stay


# what a settings class of each kind derives from: the pipeline reads these fields and no others
BASES: dict[Kind, type[StepSettings]] = {
    Kind.PRUNE: Prune,
    Kind.RECOVER: Recover,
    Kind.QUANTIZE: Quantization,
    Kind.MASK: Masking,
}


@dataclass(frozen=True)
class Method:
    """One row."""

    settings: type[StepSettings]  # a subclass of its kind's in BASES
    kind: Kind
    title: str  # as cards write it
    solver: str  # the module with `prepare` and `compress` (methods/base.py, Solver), or that runs the step

    @property
    def name(self) -> str:
        """The word after `method:`."""
        (name,) = self.settings.model_fields["method"].annotation.__args__  # type: ignore[union-attr]
        return cast(str, name)

    @property
    def paper(self) -> str:
        """The address of the paper."""
        return self.settings.paper


OURS = (
    Method(Gptq, Kind.QUANTIZE, "GPTQ", "hubplugin.methods.gptq.gptq"),
    Method(Prune, Kind.PRUNE, "OBS", "hubplugin.methods.obs"),
    Method(Recover, Kind.RECOVER, "distillation", "hubplugin.recovery.recover"),
    Method(Wanda, Kind.MASK, "Wanda", "hubplugin.methods.wanda"),
    Method(SparseGpt, Kind.MASK, "SparseGPT", "hubplugin.methods.sparsegpt"),
)


def _rows() -> dict[str, Method]:
    """Our rows and those of installed distributions, by name. Raises ManifestError where one is not a row of ours."""
    rows = {row.name: row for row in OURS}
    for entry in metadata.entry_points(group=GROUP):
        row = entry.load()
        where = f"entry point {entry.name} of {GROUP}"
        if not isinstance(row, Method) or not issubclass(row.settings, BASES[row.kind]):
            raise ManifestError(where, "is no row of METHODS", "mend or remove the package that brings it")
        if row.name in rows:
            raise ManifestError(
                where, f"a method called {row.name} exists already", "remove the package that brings it"
            )
        rows[row.name] = row
    return rows


METHODS: dict[str, Method] = _rows()


def row_of(step: StepSettings) -> Method:
    """The row of a step."""
    return METHODS[step.method]


def kind_of(step: StepSettings) -> Kind:
    """The kind of a step."""
    return row_of(step).kind


def step_of(steps: Iterable[StepSettings], kind: Kind) -> StepSettings | None:
    """The step of a kind; None where there is none."""
    return next((step for step in steps if kind_of(step) is kind), None)


def quantization_of(steps: Iterable[StepSettings]) -> Quantization | None:
    """The step that stores codes."""
    return cast(Quantization | None, step_of(steps, Kind.QUANTIZE))


def pruning_of(steps: Iterable[StepSettings]) -> Prune | None:
    """The step that changes the shape."""
    return cast(Prune | None, step_of(steps, Kind.PRUNE))


def mask_of(steps: Iterable[StepSettings]) -> Masking | None:
    """The step that sets single weights to zero."""
    return cast(Masking | None, step_of(steps, Kind.MASK))


def recovery_of(steps: Iterable[StepSettings]) -> Recover | None:
    """The step that trains."""
    return cast(Recover | None, step_of(steps, Kind.RECOVER))
