"""The part of a report about tasks: base and variant, asked the same questions by lm-eval. Knows ratios alone."""

from pydantic import Field

from hubplugin.record import Record


class Score(Record):
    """The mean of a metric over all questions of a task."""

    value: float
    stderr: float | None  # None: the harness gives none


class TaskResult(Record):
    """One task."""

    name: str
    metric: str  # with the harness's filter, where it is not "none"
    higher_is_better: bool
    questions: int
    of: int  # that the task has
    fewshot: int | None  # None: subtasks differ
    version: str  # of the task, as it says itself
    sha256: str | None = None  # of a task of the manifest's own: its file and its data
    base: Score
    variant: Score
    # of the variant's values minus the base's, question by question; None where a metric is no mean over questions
    difference: Score | None = None
    p_value: float | None = None  # two-sided, of no difference

    @property
    def recovery(self) -> float | None:
        """The ratio of the variant's value to the base's, turned round where lower is better; None over nothing."""
        ours, theirs = self.variant.value, self.base.value
        if not self.higher_is_better:
            ours, theirs = theirs, ours
        return ours / theirs if theirs else None


class Tasks(Record):
    """All tasks of a manifest."""

    harness: str  # name and release
    limit: int | None  # of questions of each task; None: all were asked
    protocol: str  # dtype, batches, seeds, in words
    results: tuple[TaskResult, ...]
    measured_from: dict[str, str] = Field(default_factory=dict)  # digests of what decided these numbers
