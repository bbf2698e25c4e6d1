"""A task of the manifest's own: a YAML file in lm-eval's words, with its data beside it or on the Hub.

What would run code of the file's is refused: tags such as !function, and data with a script. Knows no lm-eval.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubplugin.disk import digest, sha256
from hubplugin.errors import ManifestError
from hubplugin.manifest.reading import yaml_file
from hubplugin.manifest.tasks import is_file

DATA = ("json", "csv", "parquet", "text")  # formats of files that `datasets` reads by itself
# lm-eval's own; a metric of another name is a program that it looks for on this disk and on the Hub
METRICS = (
    *("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "exact_match", "brier_score", "likelihood"),
    *(
        "perplexity",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
        "mcc",
        "f1",
        "bleu",
        "chrf",
        "chrf++",
        "ter",
    ),
)
REFUSED = {
    "include": "includes another file",
    "class": "is a class of Python",
    "custom_dataset": "is a function of Python",
    "unsafe_code": "runs what the model writes",
    "use_prompt": "is a prompt of another package",
}


@dataclass(frozen=True)
class TaskFile:
    """A task as lm-eval takes it, whose data files have absolute paths."""

    name: str
    config: dict[str, Any]
    sha256: str  # of the file's bytes and its data's
    files: tuple[str, ...]  # itself and its data


def read(path: Path) -> TaskFile:
    """Read one file. Raises ManifestError where it is no such task, or its data is not there."""
    try:
        found = yaml_file.read(path)
    except ManifestError as error:
        fix = "write it as docs/tasks.md shows, without tags such as !function"
        raise ManifestError(error.where, error.what, fix) from error
    config = found.data
    if not isinstance(config, dict) or not isinstance(config.get("task"), str):
        raise ManifestError(str(path), "is no task: it has no `task:` with a name", "write it as docs/tasks.md shows")
    for key, what in REFUSED.items():
        if config.get(key):
            raise ManifestError(f"{path}: {key}", f"{what}, which a task of a manifest may not", f"remove {key}")
    _check_metrics(config.get("metric_list"), path)
    given = config.get("dataset_kwargs") or {}
    if not isinstance(given, dict) or given.get("trust_remote_code"):
        raise ManifestError(f"{path}: dataset_kwargs", "asks for code of the data's own", "remove trust_remote_code")
    if config.get("dataset_path") not in DATA:
        return TaskFile(config["task"], config, found.sha256, (str(path),))
    files = given.get("data_files")
    if not files:
        raise ManifestError(
            f"{path}: dataset_kwargs", "names no data_files", "name them: {data_files: {test: a.jsonl}}"
        )
    placed = _placed(files, path)
    data = list(_flat(placed))
    digests = [found.sha256, *(sha256(Path(one)) for one in data)]
    config = {**config, "dataset_kwargs": {**given, "data_files": placed}}
    return TaskFile(config["task"], config, digest(" ".join(digests)), (str(path), *data))


def of(names: Iterable[str], folder: Path) -> dict[str, TaskFile]:
    """Those of the tasks that are files, from the manifest's folder. Raises ManifestError as `read` does."""
    return {name: read(folder / name) for name in names if is_file(name)}


def _check_metrics(listed: Any, path: Path) -> None:
    for entry in listed if isinstance(listed, list) else ():
        name = entry.get("metric") if isinstance(entry, dict) else entry
        if name not in METRICS or entry.get("hf_evaluate"):
            fix = f"use one of {', '.join(METRICS)}"
            raise ManifestError(f"{path}: metric_list", f"{name} is no metric of lm-eval's own", fix)


def _placed(files: Any, path: Path) -> Any:
    """The data files, from the task's folder; as they were nested."""
    if isinstance(files, dict):
        return {split: _placed(each, path) for split, each in files.items()}
    if isinstance(files, list):
        return [_placed(each, path) for each in files]
    place = path.resolve().parent / str(files)
    if not place.is_file():
        raise ManifestError(f"{path}: data_files", f"{files} is not there", "name a file beside the task's")
    return str(place)


def _flat(files: Any) -> Iterator[str]:
    if isinstance(files, str):
        yield files
        return
    for each in files.values() if isinstance(files, dict) else files:
        yield from _flat(each)
