"""A variant's answers beside its base's: what report.json holds of tasks. Knows answers; asks nothing."""

from collections.abc import Mapping
from pathlib import Path

from hubplugin.evaluation.tasks import harness, paired
from hubplugin.evaluation.tasks.harness import Answers
from hubplugin.evaluation.tasks.surroundings import SEEDED
from hubplugin.manifest import tasks as settings
from hubplugin.manifest.reading import task_file
from hubplugin.task_record import Score, TaskResult, Tasks


def compared(asked: settings.Tasks, base: Mapping[str, Answers], variant: Mapping[str, Answers], folder: Path) -> Tasks:
    """Both models' answers as the record of a report; `folder` is the manifest's."""
    results = tuple(_result(name, base[name], variant[name], folder) for name in asked.names)
    protocol = f"dequantized weights in float32, batches of {asked.batch_size}, seeds {SEEDED}, no chat template"
    return Tasks(harness=harness.version(), limit=asked.limit, protocol=protocol, results=results)


def _result(name: str, base: Answers, variant: Answers, folder: Path) -> TaskResult:
    pairs = base.asked == variant.asked and len(base.values) == len(variant.values)
    between = paired.difference(base.values, variant.values) if pairs else None
    own = task_file.read(folder / name) if settings.is_file(name) else None
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
