"""METHODS: one row for every method that a step may name, ours and those that other distributions bring.

A row says what a manifest may set, what kind of work it is, which module does it, what `plan` checks and estimates, and
what cards say. Modules are named, not imported: a manifest is read without torch. Another distribution adds a row by an
entry point in the group `hubplugin.methods` whose object is a `Method` (docs/contributing.md, Add a method). Knows no
model and no order of steps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module, metadata
from typing import Any, cast

from hubplugin.errors import ManifestError
from hubplugin.manifest.base import StepSettings
from hubplugin.manifest.steps.adapter import Adapting, Eora, Lora
from hubplugin.manifest.steps.codebook import Codebook
from hubplugin.manifest.steps.gptq import Gptq, GridQuantization
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.manifest.steps.masks import Masking, SparseGpt, Wanda
from hubplugin.manifest.steps.prune import Prune
from hubplugin.manifest.steps.quantization import Quantization
from hubplugin.manifest.steps.training.base import Distilling
from hubplugin.manifest.steps.training.distill import Distill
from hubplugin.manifest.steps.training.recover import Recover
from hubplugin.manifest.steps.training.tune import Tune

GROUP = "hubplugin.methods"  # of entry points


class Kind(Enum):
    """What a step does to a model. At most one step of a kind makes sense in a variant."""

    PRUNE = "prune"  # removes channels, heads, layers: the shape changes
    RECOVER = "recover"  # trains all weights towards the base, or towards another teacher
    QUANTIZE = "quantize"  # stores codes in place of weights
    MASK = "mask"  # sets single weights to zero: shape and dtype stay
    FACTORIZE = "factorize"  # stores two factors in place of a weight
    TUNE = "tune"  # trains what stands beside codes towards the base: scales, norms, biases
    ADAPT = "adapt"  # makes an adapter for another variant, whose weights stay as they are


# what a settings class of each kind derives from, one of these: the pipeline reads their fields and no others. Codes
# are those of a grid or of a codebook: no file format here has others
BASES: dict[Kind, tuple[type[StepSettings], ...]] = {
    Kind.PRUNE: (Prune,),
    Kind.RECOVER: (Recover,),
    Kind.QUANTIZE: (GridQuantization, Codebook),
    Kind.MASK: (Masking,),
    Kind.FACTORIZE: (LowRank,),
    Kind.TUNE: (Tune,),
    Kind.ADAPT: (Adapting,),
}


@dataclass(frozen=True)
class Cost:
    """What a method adds to the estimates of time and memory, for each linear of [outputs, inputs] it works on.

    All in float32. The defaults are those of a Cholesky factor of the second moments and one sweep over the columns.
    """

    cubic: float = 1 / 3  # floating-point operations over inputs^3: factors and inverses of second moments
    sweeps: float = 1.0  # floating-point operations over outputs * inputs^2: updates of weights
    # matrices of [inputs, inputs] and of [outputs, inputs] that are held together, at the moments that may be the worst
    peaks: tuple[tuple[int, int], ...] = ((4, 1), (2, 4))


@dataclass(frozen=True)
class Method:
    """One row."""

    settings: type[StepSettings]  # a subclass of one of its kind's in BASES
    kind: Kind
    title: str  # as cards write it
    solver: str  # the module with `prepare` and `compress` (methods/base.py, Solver), or that runs the step
    # "module:function", called by `plan` with (step, linears, where): raises PlanError where settings do not fit
    check: str = ""
    cost: Cost = Cost()
    note: str = ""  # a sentence on the result that table, report and card repeat; empty: sizes say it all
    updates_kept: bool = False  # of a mask: weights that are kept change too, to make up for the zeros

    @property
    def name(self) -> str:
        """The word after `method:`."""
        (name,) = self.settings.model_fields["method"].annotation.__args__  # type: ignore[union-attr]
        return cast(str, name)

    @property
    def paper(self) -> str:
        """The address of the paper."""
        return self.settings.paper

    def fits(self, step: StepSettings, linears: Sequence[Any], where: str) -> None:
        """Run the row's check on planned linears (plan/schemes.py, LinearPlan). Raises PlanError."""
        if self.check:
            module, _, function = self.check.partition(":")
            getattr(import_module(module), function)(step, linears, where)


# vLLM removed its sparse kernels and refuses a sparsity_config: zeros are numbers like any other to it
DENSE = "vLLM runs this at dense speed and size"
# vLLM has no kernel for free codebooks: hubplugin's plugin for it makes dense weights of them while it loads
STORAGE = "Free codebooks save storage and transfer alone: served, this runs at the base's dense speed and size"
ADAPTER_CHECK = "hubplugin.plan.adapters.checks:check"  # the rank against every linear
MASK_CHECK = "hubplugin.plan.checks.masks:check"  # `ignore`, `pattern` and `sparsity` against every linear

OURS = (
    Method(
        Gptq, Kind.QUANTIZE, "GPTQ", "hubplugin.methods.gptq.gptq", check="hubplugin.plan.checks.quantization:check"
    ),
    # an inverse in place of a factor, updated as columns go, and the refit of what stays
    Method(Prune, Kind.PRUNE, "OBS", "hubplugin.methods.obs", cost=Cost(cubic=2, sweeps=2, peaks=((6, 4),))),
    Method(Recover, Kind.RECOVER, "distillation", "hubplugin.recovery.recover"),
    Method(Distill, Kind.RECOVER, "distillation", "hubplugin.recovery.recover"),
    Method(Wanda, Kind.MASK, "Wanda", "hubplugin.methods.wanda", check=MASK_CHECK, note=DENSE),
    Method(
        SparseGpt,
        Kind.MASK,
        "SparseGPT",
        "hubplugin.methods.sparsegpt",
        check=MASK_CHECK,
        note=DENSE,
        updates_kept=True,
    ),
    # two eigendecompositions or more (of stacks, and of each linear in the search), products around them
    Method(
        LowRank,
        Kind.FACTORIZE,
        "SVD-LLM",
        "hubplugin.methods.lowrank",
        check="hubplugin.plan.checks.lowrank:check",
        cost=Cost(cubic=20, sweeps=8, peaks=((5, 5),)),
    ),
    Method(
        Tune,
        Kind.TUNE,
        "tuned scales",
        "hubplugin.recovery.recover",
        check="hubplugin.plan.checks.training.tuning:check",
    ),
    Method(
        Codebook,
        Kind.QUANTIZE,
        "codebooks",
        "hubplugin.methods.codebook.codebook",
        check="hubplugin.plan.checks.codebook:check",
        # a refit is some ten products of second moments with all columns
        cost=Cost(sweeps=40, peaks=((4, 1), (3, 6))),
        note=STORAGE,
    ),
    # an eigendecomposition of each linear's error, products around it
    Method(
        Eora,
        Kind.ADAPT,
        "EoRA",
        "hubplugin.methods.eora",
        check=ADAPTER_CHECK,
        cost=Cost(cubic=10, sweeps=8, peaks=((5, 5),)),
    ),
    Method(Lora, Kind.ADAPT, "LoRA", "hubplugin.recovery.adapter_training", check=ADAPTER_CHECK),
)


def _rows() -> dict[str, Method]:
    """Our rows and those of installed distributions, by name. Raises ManifestError where one is not a row of ours."""
    rows = {row.name: row for row in OURS}
    for entry in metadata.entry_points(group=GROUP):
        row, where = _loaded(entry), _place(entry)
        if row.name in rows:
            raise ManifestError(
                where, f"a method called {row.name} exists already", "remove the package that brings it"
            )
        rows[row.name] = row
    return rows


def _place(entry: metadata.EntryPoint) -> str:
    package = f" in {entry.dist.name}" if entry.dist else ""
    return f"entry point {entry.name} of {GROUP}{package}"


def _loaded(entry: metadata.EntryPoint) -> Method:
    """The row that an entry point names. Raises ManifestError where it cannot be imported or is none."""
    where, fix = _place(entry), "mend or remove the package that brings it"
    try:
        row = entry.load()
    except Exception as error:  # whatever a package raises while it is imported
        raise ManifestError(where, f"cannot be loaded: {type(error).__name__}: {error}", fix) from error
    if not isinstance(row, Method) or not issubclass(row.settings, BASES[row.kind]):
        raise ManifestError(where, "is no row of METHODS", fix)
    field = row.settings.model_fields.get("method")
    if field is None or len(getattr(field.annotation, "__args__", ())) != 1 or not hasattr(row.settings, "paper"):
        raise ManifestError(where, "its settings lack `method: Literal[...]` of one name, or `paper`", fix)
    return row


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


def grid_of(steps: Iterable[StepSettings]) -> GridQuantization | None:
    """The step that stores codes of a uniform grid."""
    step = quantization_of(steps)
    return step if isinstance(step, GridQuantization) else None


def pruning_of(steps: Iterable[StepSettings]) -> Prune | None:
    """The step that changes the shape."""
    return cast(Prune | None, step_of(steps, Kind.PRUNE))


def mask_of(steps: Iterable[StepSettings]) -> Masking | None:
    """The step that sets single weights to zero."""
    return cast(Masking | None, step_of(steps, Kind.MASK))


def recovery_of(steps: Iterable[StepSettings]) -> Recover | None:
    """The step that trains."""
    return cast(Recover | None, step_of(steps, Kind.RECOVER))


def distillation_of(steps: Iterable[StepSettings]) -> Distill | None:
    """The step that trains towards a teacher, where it is `distill` and not `recover`."""
    step = recovery_of(steps)
    return step if isinstance(step, Distill) else None


def factorization_of(steps: Iterable[StepSettings]) -> LowRank | None:
    """The step that stores factors."""
    return cast(LowRank | None, step_of(steps, Kind.FACTORIZE))


def tuning_of(steps: Iterable[StepSettings]) -> Tune | None:
    """The step that trains what stands beside codes."""
    return cast(Tune | None, step_of(steps, Kind.TUNE))


def closed_form_of(steps: Iterable[StepSettings]) -> Eora | None:
    """The step that makes an adapter from second moments: a variant's own, or the one that its training begins with."""
    step = adapting_of(steps)
    return step.begun if isinstance(step, Lora) else step if isinstance(step, Eora) else None


def adapting_of(steps: Iterable[StepSettings]) -> Adapting | None:
    """The step that makes an adapter for another variant."""
    return cast(Adapting | None, step_of(steps, Kind.ADAPT))


def trainings_of(steps: Iterable[StepSettings]) -> list[Distilling]:
    """All steps that train."""
    return [step for step in steps if isinstance(step, Distilling)]
