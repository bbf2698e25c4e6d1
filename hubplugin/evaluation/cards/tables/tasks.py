"""Lines of the card's table of tasks: base and variant, and how they differ on the same questions."""

from hubplugin.evaluation.cards import markdown, numbers
from hubplugin.evaluation.cards.markdown import Markdown
from hubplugin.task_record import Score, TaskResult, Tasks

P_DIGITS = 4  # below which a p-value is only said to be smaller


def rows(tasks: Tasks | None) -> list[Markdown]:
    """One line for each task; none where none were asked."""
    return [_row(result) for result in tasks.results] if tasks else []


def _row(result: TaskResult) -> Markdown:
    recovery = result.recovery
    return markdown.table_row(
        [
            result.name,
            result.metric if result.higher_is_better else f"{result.metric} (lower is better)",
            f"{result.questions:,}" if result.questions == result.of else f"{result.questions:,} of {result.of:,}",
            _score(result.base),
            _score(result.variant),
            "" if recovery is None else numbers.percent(recovery),
            "" if result.difference is None else _score(result.difference, signed=True),
            "" if result.p_value is None else _p(result.p_value),
        ]
    )


def _score(score: Score, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{score.value:{sign}.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")


def _p(value: float) -> str:
    least = 10**-P_DIGITS
    return f"< {least:.{P_DIGITS}f}" if value < least else f"{value:.{P_DIGITS}f}"
