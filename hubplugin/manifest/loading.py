"""Reads a manifest: YAML in, a checked `Document` out; every fault as place, cause and remedy.

Knows the schema; no model, no torch and no network.
"""

import difflib
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from hubplugin.errors import ManifestError
from hubplugin.manifest import yaml_file
from hubplugin.manifest.base import Settings
from hubplugin.manifest.gptq import Budget, Option, Override
from hubplugin.manifest.messages import explain
from hubplugin.manifest.methods import METHODS
from hubplugin.manifest.schema import Document, Evaluate, Gate, Manifest, Publish, Thresholds
from hubplugin.manifest.source import Source


def load(path: str | Path) -> Document:
    """Read and check a manifest. Raises ManifestError with the place in the file and what is allowed."""
    file = yaml_file.read(Path(path))
    if not isinstance(file.data, dict):
        what = "is empty" if file.data is None else "holds no mapping of keys to values"
        raise ManifestError(str(path), what, "start with `model: owner/name`; see README, The manifest")
    try:
        manifest = Manifest.model_validate(file.data)
    except ValidationError as error:
        raise _schema_error(Path(path), error) from error
    return Document(path=str(path), text=file.text, sha256=file.sha256, manifest=manifest)


def _schema_error(path: Path, error: ValidationError) -> ManifestError:
    """The first problem as place, cause and remedy; the number of others is added to the cause."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    place = ""
    for index, part in enumerate(problem["loc"]):
        if part in METHODS and index and isinstance(problem["loc"][index - 1], int):
            continue  # pydantic names the branch of the union; the user did not write it
        if part == "[key]":
            continue  # and this is how it says that the key before it is wrong
        place += f"[{part}]" if isinstance(part, int) and problem["loc"][-1] != "[key]" else f".{part}"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        place += ".method"
    if problem["type"] == "fault" and problem["ctx"]["place"]:
        place += f".{problem['ctx']['place']}"
    what, fix = explain(problem, METHODS, _near)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ManifestError(f"{path}: {place.lstrip('.') or 'manifest'}", what + more, fix)


def _near(key: str, parents: list[Any]) -> str:
    """What an unknown key may have meant: the nearest of those allowed in its place, or all of them."""
    sections: dict[str, type[Settings]] = {
        "calibrate": Source,
        "data": Source,
        "perplexity": Source,
        "evaluate": Evaluate,
        "gate": Gate,
        "publish": Publish,
        "budget": Budget,
        **{name: row.settings for name, row in METHODS.items()},
    }
    section = sections.get(parents[-1], Thresholds) if parents else Manifest
    section = Override if "overrides" in parents else Option if "options" in parents else section
    allowed = [info.alias or name for name, info in section.model_fields.items()]
    near = difflib.get_close_matches(key, allowed, n=1)
    return f"did you mean `{near[0]}`?" if near else f"remove it; allowed here: {', '.join(allowed)}"
