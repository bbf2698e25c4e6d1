"""The tasks of `evaluate.tasks` before any work: files that are none, names that lm-eval does not know, no lm-eval.

Names are looked for in the files of the installed lm-eval, without importing it; its own index of all tasks, which
takes it tens of seconds to make, is asked only about names that no file spells out.
"""

import difflib
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from hubplugin.errors import PlanError
from hubplugin.manifest.reading import task_file
from hubplugin.manifest.schema import Document
from hubplugin.manifest.tasks import EXTRA


def check_tasks(document: Document) -> None:
    """Raises PlanError or ManifestError where a task cannot be asked."""
    evaluate = document.manifest.evaluate
    if evaluate is None or evaluate.tasks is None:
        return
    where, names = f"{document.path}: evaluate.tasks", evaluate.tasks.names
    found = find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise PlanError(where, "tasks are asked by lm-eval, which is not installed", EXTRA)
    plain = set(names) - task_file.of(names, document.folder).keys()
    if unknown := _unknown(plain, Path(next(iter(found.submodule_search_locations))) / "tasks"):
        _refuse(where, unknown)


def _unknown(names: Iterable[str], folder: Path) -> set[str]:
    """The names that no file of lm-eval's gives to a task, a group or a tag in so many words."""
    left = set(names)
    for path in folder.rglob("*.y*ml") if left else ():
        text = path.read_text(encoding="utf-8", errors="replace")
        left = {
            name
            for name in left
            if not re.search(rf"^(task|group|tag): *['\"]?{re.escape(name)}['\"]?\s*$", text, re.M)
        }
        if not left:
            break
    return left


def _refuse(where: str, names: set[str]) -> None:
    """Raise for the first name that lm-eval's own index does not have either."""
    from lm_eval.tasks import TaskManager

    known = TaskManager().all_tasks
    for name in sorted(names.difference(known)):
        near = difflib.get_close_matches(name, known, n=3)
        fix = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
        raise PlanError(where, f"lm-eval has no task {name}", fix)
