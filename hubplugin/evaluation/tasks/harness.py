"""Asks a folder the questions of tasks through EleutherAI's lm-eval, and keeps the value of every question.

The folder is loaded as transformers' model with dequantized weights in float32, whose linears round their inputs where
the format does, and handed to lm-eval's own HFLM. Prompts, metrics and standard errors are lm-eval's. Nothing of a
task's runs code that is not lm-eval's.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from hubplugin.errors import CalibrationError, one_line
from hubplugin.evaluation import generation
from hubplugin.manifest import tasks as settings
from hubplugin.manifest.reading import task_file
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.progress import progress

PREFERRED = ("acc_norm", "acc", "exact_match")  # the metric of a task: the first of these that it has, else its first
SEED = 1234  # of the examples in front of questions, as lm-eval's own
EXTRA = "pip install 'hubplugin[tasks]'"


@dataclass(frozen=True)
class Answers:
    """What one model made of one task."""

    metric: str  # with the filter, where that is not "none"
    higher_is_better: bool
    value: float
    stderr: float | None
    values: tuple[float, ...]  # by question; empty where the metric is no mean of them
    questions: int
    of: int
    fewshot: int | None
    version: str


def version() -> str:
    """The harness, by name and release."""
    return f"lm-eval {metadata.version('lm-eval')}"


def ask(folder: Path, asked: settings.Tasks, manifest_folder: Path) -> dict[str, Answers]:
    """Ask a folder all tasks; by their names in the manifest.

    Raises CalibrationError where a task or its data cannot be had, or lm-eval fails.
    """
    lm_eval = _harness()
    loaded, tokenizer = generation.loaded(folder), read_tokenizer(folder)
    with _quiet():
        model = lm_eval.models.huggingface.HFLM(
            pretrained=loaded, tokenizer=tokenizer, batch_size=asked.batch_size, device=str(loaded.device)
        )
    answers = {}
    for name in asked.names:
        with _quiet():
            found = _answers(lm_eval, model, name, asked, manifest_folder)
        progress(f"task {name} | {found.questions} questions | {found.metric} {found.value:.4f}")
        answers[name] = found
    return answers


def _harness() -> ModuleType:
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise CalibrationError("evaluate.tasks", f"lm-eval is not installed: {one_line(error)}", EXTRA) from error
    return lm_eval


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No talk of the harness, and its bars on a terminal alone: what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _uncounted() -> Iterator[None]:
    """`datasets` asks a server to count the use of a format, for files of this disk too, and waits for an answer."""
    from datasets import config

    before, config.HF_UPDATE_DOWNLOAD_COUNTS = config.HF_UPDATE_DOWNLOAD_COUNTS, False
    try:
        yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = before


def _answers(lm_eval: ModuleType, model: Any, name: str, asked: settings.Tasks, manifest_folder: Path) -> Answers:
    own = settings.is_file(name)
    given = task_file.read(manifest_folder / name).config if own else name
    try:
        with _uncounted() if own else contextlib.nullcontext():
            loaded = lm_eval.tasks.TaskManager(include_defaults=not own).load([given])
        for task in loaded["tasks"].values():
            if asked.fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=asked.fewshot)
            task.set_fewshot_seed(seed=SEED)
        found = lm_eval.evaluator.evaluate(model, loaded, limit=asked.limit, bootstrap_iters=0, log_samples=True)
        return read(found)
    except CalibrationError:
        raise
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
    stderr = alone.get(f"{metric}_stderr,{kind}") if alone else _stderr(flat)
    shots = {found["n-shot"].get(name) for name in names}
    return Answers(
        metric=metric if kind == "none" else f"{metric}, {kind}",
        higher_is_better=bool(found["higher_is_better"][names[0]].get(metric, True)),
        value=float(value),
        stderr=float(stderr) if isinstance(stderr, int | float) else _stderr(flat) if is_mean else None,
        values=flat if is_mean else (),
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


def _stderr(values: Sequence[float]) -> float | None:
    from statistics import stdev

    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
