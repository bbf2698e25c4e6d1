"""What a distill step cannot do with its student, its teacher, or the steps before it: each contradiction a PlanError.

Knows settings of steps and sizes of the models that they name; no weights, no tokenizer and no training.
"""

from collections.abc import Mapping, Sequence

from hubplugin.errors import PlanError
from hubplugin.manifest.methods import distillation_of, grid_of, pruning_of, tuning_of
from hubplugin.manifest.schema import Document, Step
from hubplugin.manifest.steps.training.distill import Distill
from hubplugin.model.architectures import families
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.plan import base as base_model
from hubplugin.plan.base import Base, Named
from hubplugin.plan.checks import sources

LEAST = 2  # sequences or prompts: one to learn from, one to hold out


def start(
    document: Document, steps: Sequence[Step], base: Base, named: Mapping[str, Named], where: str
) -> tuple[Base, Base | None]:
    """The model that a variant's weights start from, and the teacher of its distill step; None: the base, or none here.

    Raises PlanError, and FamilyError for an unknown architecture, where they and the step do not go together.
    """
    step = distillation_of(steps)
    if step is None:
        return base, None
    place = f"{where}[{list(steps).index(step)}]"
    student = _read(step.student, named, base)
    teacher = _read(step.teacher, named, base)
    _check_roles(step, steps, document.manifest.model, place)
    _check_sizes(step, student, teacher, base, place)
    _check_text(step, document, (student.dims, teacher.dims), place)
    _check_tuning(steps, student, base, where)
    grid = grid_of(steps)
    if grid and grid.budget:
        raise PlanError(
            f"{place}.method",
            "a budget of bits is spent by measurements on the base, and codes would be made of what was trained",
            "remove budget from the step that quantizes, and give it bits",
        )
    return student, teacher if step.teacher else None


def _read(model: str | None, named: Mapping[str, Named], base: Base) -> Base:
    """The facts of a model that a step names; of the base where it names none."""
    if model is None:
        return base
    where, facts = f"{model}/config.json", named[model]
    sources.check_base(facts.config, where)
    return base_model.read(model, families.match(dict(facts.config), where), facts.config, facts.tensors)


def _check_roles(step: Distill, steps: Sequence[Step], model: str, place: str) -> None:
    """Who learns from whom."""
    pruned = pruning_of(steps) is not None
    if step.student and pruned:
        raise PlanError(
            f"{place}.student",
            "the prune step before it makes the student",
            "remove student, or make a variant of each; to prune another model, write it as model",
        )
    remote = step.answers is not None and step.answers.endpoint is not None
    if not pruned and not remote and (step.student or model) == (step.teacher or model):
        raise PlanError(
            f"{place}.method",
            f"{step.student or 'the base'} would learn from itself",
            "name a student or another teacher, or put it after a prune step",
        )


def _check_sizes(step: Distill, student: Base, teacher: Base, base: Base, place: str) -> None:
    """Vocabularies and, where hidden states are compared, widths and depths."""
    rows = student.dims.vocab
    if rows != base.dims.vocab:
        raise PlanError(
            f"{place}.student",
            f"its embedding has {rows} rows, the base's {base.dims.vocab}: their predictions cannot be compared",
            "use a student of the base's own vocabulary",
        )
    if step.reads_predictions and teacher.dims.vocab != rows:
        raise PlanError(
            f"{place}.teacher",
            f"its embedding has {teacher.dims.vocab} rows, the student's {rows}: predictions cannot be compared",
            "learn from its answers, with answers: {}",
        )
    if step.blocks and (differing := _other_states(student, teacher)):
        raise PlanError(
            f"{place}.blocks",
            f"the student has {differing[0]}, the teacher {differing[1]}: hidden states cannot be compared",
            "leave blocks out: predictions alone are learnt from",
        )


def _other_states(one: Base, other: Base) -> tuple[str, str] | None:
    """Why two models' hidden states cannot be compared: what each of them has; None where they can."""
    for what, ours, theirs in (
        ("a hidden size of", one.dims.hidden, other.dims.hidden),
        ("a number of layers of", one.dims.layers, other.dims.layers),
        ("the family", one.family.native, other.family.native),
    ):
        if ours != theirs:
            return f"{what} {ours}", str(theirs)
    return None


def _check_tuning(steps: Sequence[Step], student: Base, base: Base, where: str) -> None:
    """A tune step behind it trains towards the base, block by block where both have the same hidden states."""
    tune = tuning_of(steps)
    if tune and tune.blocks and (differing := _other_states(student, base)):
        raise PlanError(
            f"{where}[{list(steps).index(tune)}].blocks",
            f"the student has {differing[0]}, the base {differing[1]}: hidden states cannot be compared",
            "set blocks: 0, so that it is tuned on the base's predictions alone",
        )


def _check_text(step: Distill, document: Document, models: Sequence[Dimensions], place: str) -> None:
    """The text against the contexts of both models, and prompts against its sequences."""
    source = step.data or document.manifest.calibrate
    at = f"{place}.data" if step.data else f"{document.path}: calibrate"
    if source.samples < LEAST:
        raise PlanError(
            at, f"{source.samples} sequence to learn from leaves none to hold out", f"use samples: {LEAST} or more"
        )
    context = min((dims.context for dims in models if dims.context is not None), default=None)
    if context is not None and source.sequence_length > context:
        raise PlanError(
            f"{at}.{source.length_key}",
            f"{source.sequence_length} tokens are longer than a context of {context} of student or teacher",
            f"use {source.length_key}: {context} or fewer",
        )
    if step.answers and step.answers.prompt_tokens >= source.sequence_length:
        raise PlanError(
            f"{place}.answers.prompt_tokens",
            f"prompts of {step.answers.prompt_tokens} tokens leave nothing of sequences of {source.sequence_length}",
            "use fewer, or a larger sequence_length of the data",
        )
