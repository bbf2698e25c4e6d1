"""A variant's answers beside its base's: what report.json holds of tasks. Knows answers; asks nothing."""

from collections.abc import Mapping

from hubplugin.evaluation.tasks import harness, paired
from hubplugin.evaluation.tasks.harness import Answers
from hubplugin.evaluation.tasks.surroundings import SEEDED
from hubplugin.manifest import tasks as settings
from hubplugin.manifest.reading.task_file import TaskFile
from hubplugin.task_record import Score, TaskResult, Tasks


def compared(
    asked: settings.Tasks, base: Mapping[str, Answers], variant: Mapping[str, Answers], own: Mapping[str, TaskFile]
) -> Tasks:
    """Both models' answers as the record of a report; `own` are the tasks that are files."""
    results = tuple(_result(name, base[name], variant[name], own.get(name)) for name in asked.names)
    protocol = f"dequantized weights in float32, batches of {asked.batch_size}, seeds {SEEDED}, no chat template"
    return Tasks(harness=harness.version(), limit=asked.limit, protocol=protocol, results=results)


def _result(name: str, base: Answers, variant: Answers, own: TaskFile | None) -> TaskResult:
    pairs = base.asked == variant.asked and len(base.values) == len(variant.values)
    between = paired.difference(base.values, variant.values) if pairs else None
    return TaskResult(
        name=name,
        metric=base.metric,
        higher_is_better=base.higher_is_better,
        questions=base.questions,
        of=base.of,
        fewshot=base.fewshot,
        version=base.version,
        sha256=own.sha256 if own else None,
        base=Score(value=base.value, stderr=base.stderr),
        variant=Score(value=variant.value, stderr=variant.stderr),
        difference=Score(value=between.mean, stderr=between.stderr) if between else None,
        p_value=between.p_value if between else None,
    )
