"""The gate: what must hold of a finished folder before it is published.

Every line is checked, so that one run shows all that is wrong. Knows folders, plans and measured numbers; a line is one
function of a candidate.
"""

from collections.abc import Callable, Sequence

from hubplugin.evaluation.gate.candidate import Candidate
from hubplugin.evaluation.gate.engine import PROMPT_TOKENS, generation
from hubplugin.evaluation.gate.files import companions_equal
from hubplugin.evaluation.gate.speed import SPEED, judge_speed, speed
from hubplugin.evaluation.gate.tasks import TASKS, judge_tasks, tasks
from hubplugin.evaluation.gate.templates import templates_equal
from hubplugin.evaluation.gate.thresholds import QUALITY, judge, quality
from hubplugin.evaluation.gate.vocabulary import vocabulary_fits
from hubplugin.evaluation.gate.weights import (
    AS_COMPRESSED,
    as_compressed,
    as_in_base,
    as_masked,
    as_planned,
    finite,
    parent_passed,
    ties,
)
from hubplugin.report import GateLine

__all__ = [
    "AS_COMPRESSED",
    "LINES",
    "PROMPT_TOKENS",
    "QUALITY",
    "SPEED",
    "TASKS",
    "Candidate",
    "as_compressed",
    "as_in_base",
    "as_masked",
    "as_planned",
    "check",
    "check_again",
    "companions_equal",
    "finite",
    "generation",
    "judge",
    "judge_speed",
    "judge_tasks",
    "parent_passed",
    "quality",
    "speed",
    "tasks",
    "templates_equal",
    "ties",
    "vocabulary_fits",
]

# a line is None where it does not concern the variant
LINES: tuple[Callable[[Candidate], GateLine | None], ...] = (
    finite,
    as_planned,
    as_compressed,
    as_masked,
    as_in_base,
    ties,
    companions_equal,
    templates_equal,
    vocabulary_fits,
    quality,
    tasks,
    speed,
    generation,
)


# of an adapter: what the variant that it is for was asked already is not asked again
ADAPTER_LINES: tuple[Callable[[Candidate], GateLine | None], ...] = (
    finite,
    as_planned,
    as_compressed,
    parent_passed,
    quality,
    tasks,
    speed,
    generation,
)


def lines_of(candidate: Candidate) -> tuple[Callable[[Candidate], GateLine | None], ...]:
    """The lines that are asked of a candidate."""
    return ADAPTER_LINES if candidate.plan.adapter else LINES


def check(candidate: Candidate) -> tuple[GateLine, ...]:
    """All lines that concern the candidate, whether they passed or not."""
    return tuple(line for check_line in lines_of(candidate) if (line := check_line(candidate)) is not None)


def check_again(candidate: Candidate, before: Sequence[GateLine]) -> tuple[GateLine, ...]:
    """All lines of a folder whose weights stay. That they are the compressed ones is known from when they were made."""
    kept = tuple(line for line in before if line.name == AS_COMPRESSED)
    checks = (check_line for check_line in lines_of(candidate) if check_line is not as_compressed)
    return kept + tuple(line for check_line in checks if (line := check_line(candidate)) is not None)
