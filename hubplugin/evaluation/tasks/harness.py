"""Asks a folder the questions of tasks through EleutherAI's lm-eval, and keeps the value of every question.

The folder is loaded as transformers' model with dequantized weights in float32, whose linears round their inputs where
the format does, and handed to lm-eval's own HFLM. Prompts, metrics and scores are lm-eval's; standard errors are by its
formula for means, the sample's standard deviation over the square root of the number of questions.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from hubplugin.disk import digest
from hubplugin.errors import CalibrationError, one_line
from hubplugin.evaluation import generation
from hubplugin.evaluation.tasks.surroundings import SEEDS, of_own_task, quiet, seeded
from hubplugin.manifest import tasks as settings
from hubplugin.manifest.reading.task_file import TaskFile
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.model.devices import default_device
from hubplugin.progress import progress

PREFERRED = ("acc_norm", "acc", "exact_match")  # the metric of a task: the first of these that it has, else its first


@dataclass(frozen=True)
class Answers:
    """What one model made of one task."""

    metric: str  # with the filter, where that is not "none"
    higher_is_better: bool
    value: float
    stderr: float | None
    values: tuple[float, ...]  # by question; empty where the metric is no mean of them
    asked: str  # a digest of the questions as they were put, in order
    questions: int
    of: int
    fewshot: int | None
    version: str


def version() -> str:
    """The harness, by name and release."""
    return f"lm-eval {metadata.version('lm-eval')}"


def ask(folder: Path, asked: settings.Tasks, own: Mapping[str, TaskFile]) -> dict[str, Answers]:
    """Ask a folder all tasks; by their names in the manifest. `own` are those that are files.

    Raises CalibrationError where a task or its data cannot be had, or lm-eval fails.
    """
    lm_eval = _harness()
    loaded, tokenizer = generation.loaded(folder).to(default_device()), read_tokenizer(folder)
    with quiet():
        model = lm_eval.models.huggingface.HFLM(
            pretrained=loaded, tokenizer=tokenizer, batch_size=asked.batch_size, device=str(loaded.device)
        )
    answers = {}
    for name in asked.names:
        with quiet():
            found = _answers(lm_eval, model, name, asked, own.get(name))
        progress(f"task {name} | {found.questions} questions | {found.metric} {found.value:.4f}")
        answers[name] = found
    return answers


def _harness() -> ModuleType:
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise CalibrationError(
            "evaluate.tasks", f"lm-eval is not installed: {one_line(error)}", settings.EXTRA
        ) from error
    return lm_eval


@cache
def _all_tasks(lm_eval: ModuleType) -> Any:
    """lm-eval's index of its own tasks, which takes it tens of seconds to make."""
    return lm_eval.tasks.TaskManager()


def _answers(lm_eval: ModuleType, model: Any, name: str, asked: settings.Tasks, own: TaskFile | None) -> Answers:
    try:
        with seeded(), of_own_task(lm_eval.utils) if own else contextlib.nullcontext():
            manager = lm_eval.tasks.TaskManager(include_defaults=False) if own else _all_tasks(lm_eval)
            loaded = manager.load([own.config if own else name])
            for task in loaded["tasks"].values():
                if asked.fewshot is not None and task.get_config("num_fewshot") != 0:
                    task.set_config(key="num_fewshot", value=asked.fewshot)
                task.set_fewshot_seed(seed=SEEDS["examples"])
            return read(lm_eval.evaluator.evaluate(model, loaded, limit=asked.limit, bootstrap_iters=0))
    except Exception as error:
        what = f"lm-eval could not ask it: {type(error).__name__}: {one_line(error)}"
        raise CalibrationError(f"evaluate.tasks: {name}", what, "mend the task, or remove it") from error


def read(found: Mapping[str, Any]) -> Answers:
    """The main metric of what lm-eval's `evaluate` returned for one name: a task, or a group, whose questions count
    alike whichever task they are of."""
    names = list(found["samples"])
    metric, kind = _main(found["results"][names[0]])
    values = [_values(found["samples"][name], metric, kind) for name in names]
    alone = found["results"][names[0]] if len(names) == 1 else {}
    flat = tuple(value for each in values for value in each)
    counts = [found["n-samples"][name] for name in names]
    whole = all(len(each) == count["effective"] for each, count in zip(values, counts, strict=True))
    mean = sum(flat) / len(flat) if flat else float("nan")
    value = alone.get(f"{metric},{kind}", mean)
    is_mean = whole and abs(value - mean) <= 1e-9 * max(1.0, abs(value))
    shots = {found["n-shot"].get(name) for name in names}
    return Answers(
        metric=metric if kind == "none" else f"{metric}, {kind}",
        higher_is_better=bool(found["higher_is_better"][names[0]].get(metric, True)),
        value=float(value),
        stderr=_stderr(flat) if is_mean else None,
        values=flat if is_mean else (),
        asked=_digest(found["samples"], kind),
        questions=sum(count["effective"] for count in counts),
        of=sum(count["original"] for count in counts),
        fewshot=next(iter(shots)) if len(shots) == 1 else None,
        version=", ".join(dict.fromkeys(str(found["versions"].get(name)) for name in names)),
    )


def _main(results: Mapping[str, Any]) -> tuple[str, str]:
    """The metric of a task, and the filter of its answers."""
    known = [tuple(key.split(",", 1)) for key in results if "," in key and not key.split(",")[0].endswith("_stderr")]
    for wanted in PREFERRED:
        for metric, kind in known:
            if metric == wanted:
                return metric, kind
    metric, kind = known[0]
    return metric, kind


def _values(samples: Sequence[Mapping[str, Any]], metric: str, kind: str) -> list[float]:
    """The metric's value of each question, in the order of the task's documents."""
    mine = [one for one in samples if one.get("filter", "none") == kind and isinstance(one.get(metric), int | float)]
    return [float(one[metric]) for one in sorted(mine, key=lambda one: one["doc_id"])]


def _digest(samples: Mapping[str, Sequence[Mapping[str, Any]]], kind: str) -> str:
    """Of the prompts and what may follow them: tasks may shuffle choices."""
    put = [
        [one.get(key) for key in ("doc_id", "doc_hash", "prompt_hash", "target_hash")]
        for name in samples
        for one in samples[name]
        if one.get("filter", "none") == kind
    ]
    return digest(json.dumps(sorted(map(str, put))))


def _stderr(values: Sequence[float]) -> float | None:
    from statistics import stdev

    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
