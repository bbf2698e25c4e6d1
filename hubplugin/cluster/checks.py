"""What must hold of every node before any work: same versions, same folder of variants, same local files.

Compares what nodes say (probe.py) with what this machine says. Knows no model.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubplugin.cluster import probe
from hubplugin.cluster.resources import Node
from hubplugin.errors import ClusterError, one_line
from hubplugin.manifest.reading import task_file
from hubplugin.manifest.schema import Document

ANSWER_SECONDS = 120.0  # that a node has to say what it sees


@dataclass(frozen=True)
class Shared:
    """What a run and all of its nodes must see alike."""

    marks: tuple[str, ...]  # a file in each folder of variants, which holds a text that only this run knows
    files: tuple[str, ...]  # local models and texts

    def seen(self) -> dict[str, Any]:
        """What this machine sees."""
        return probe.look(self.marks, self.files)


@contextmanager
def marked(documents: Sequence[Document], outs: Sequence[Path]) -> Iterator[Shared]:
    """Mark the folders of variants for as long as the run takes, with a file that all nodes must be able to read."""
    token = secrets.token_hex(8)
    marks = [out / f".ray-{token}" for out in outs]
    try:
        for mark in marks:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(token, encoding="utf-8")
        files = (path for document in documents for path in local_files(document))
        yield Shared(tuple(map(str, marks)), tuple(dict.fromkeys(files)))
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


def local_files(document: Document) -> Iterator[str]:
    """The local paths that a manifest names: its base where that is a folder, its texts, its tasks and their data."""
    manifest = document.manifest
    base = document.folder / Path(manifest.model).expanduser()
    if base.is_dir():
        yield str(base)
    for _, source in manifest.sources():
        yield from (str(document.folder / name) for name in source.files or ())
    tasks = manifest.evaluate.tasks if manifest.evaluate else None
    for each in task_file.of(tasks.names if tasks else (), document.folder).values():
        yield from each.files


def compare(node: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raise ClusterError for the first thing that a node sees otherwise than this machine."""
    where = f"node {node}"
    for name, version in here["versions"].items():
        if (other := there["versions"][name]) != version:
            what = f"has {name} {other}, and this machine has {version}" if other else f"has no {name}"
            raise ClusterError(where, what, f"install {name} {version} there, and start its Ray from that environment")
    for mark, token in here["marks"].items():
        out = str(Path(mark).parent)
        if there["marks"][mark] != token:
            what = f"does not see the folder {out} of this machine"
            raise ClusterError(where, what, "give --out a folder on a file system that all nodes share")
        if not there["writable"][mark]:
            raise ClusterError(where, f"may not write to {out}", "let the user that Ray runs as there write to it")
    for path, files in here["files"].items():
        if there["files"][path] != files:
            what = f"has no {path}" if there["files"][path] is None else f"has other files in {path}"
            fix = "copy it there under the same path, put it on a file system that all nodes share, or name a Hub repo"
            raise ClusterError(where, what, fix)


def check_nodes(ray: Any, nodes: Sequence[Node], shared: Shared, driver: Mapping[str, Any]) -> None:
    """Raise ClusterError where one of these nodes lacks what it needs, or does not answer."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(probe)
    try:
        look = ray.remote(probe.look)
        asked = {
            node.name: look.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote(shared.marks, shared.files)
            for node in nodes
        }
    finally:
        ray.cloudpickle.unregister_pickle_by_value(probe)
    for name, reference in asked.items():
        try:
            seen = ray.get(reference, timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            fix = "look at `ray status` and at that node's log, or take it out of the cluster"
            raise ClusterError(f"node {name}", f"does not answer: {one_line(error)}", fix) from error
        compare(name, driver, seen)
