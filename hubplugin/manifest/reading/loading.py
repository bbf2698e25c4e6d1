"""Reads a manifest: YAML or a mapping in, a checked `Document` out; errors with place, cause and remedy.

Knows the schema; no model, no torch and no network.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hubplugin.errors import ManifestError
from hubplugin.manifest.methods import METHODS
from hubplugin.manifest.reading import mapping, yaml_file
from hubplugin.manifest.reading.messages import explain
from hubplugin.manifest.reading.yaml_file import YamlFile
from hubplugin.manifest.schema import Document, Manifest

KEY_MARK = "[key]"  # pydantic's last location part where the key before it is wrong, not its value


def load(path: str | Path) -> Document:
    """Read and check a manifest. Raises ManifestError with the place in the file and what is allowed."""
    return _checked(yaml_file.read(Path(path)), str(path))


def from_mapping(values: Mapping[str, Any]) -> Document:
    """Check a manifest that is a mapping, with the keys of the YAML. Raises ManifestError like `load`.

    Relative paths in it start from the working directory.
    """
    return _checked(mapping.read(values), mapping.PLACE)


def _checked(file: YamlFile, place: str) -> Document:
    if not isinstance(file.data, dict):
        what = "is empty" if file.data is None else "holds no mapping of keys to values"
        raise ManifestError(place, what, "start with `model: owner/name`; see README, The manifest")
    try:
        manifest = Manifest.model_validate(file.data)
    except ValidationError as error:
        raise _schema_error(place, error) from error
    return Document(path=place, text=file.text, sha256=file.sha256, manifest=manifest)


def _schema_error(document: str, error: ValidationError) -> ManifestError:
    """The first problem as place, cause and remedy; the number of others is added to the cause."""
    problems = error.errors(include_url=False)
    what, fix = explain(problems[0], METHODS)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ManifestError(f"{document}: {_place(problems[0]) or 'manifest'}", what + more, fix)


def _place(problem: ErrorDetails) -> str:
    """Where in the manifest a problem is, such as `variants.Int4[0].bits`."""
    location = problem["loc"]
    key_is_wrong = location[-1:] == (KEY_MARK,)
    place = ""
    for index, part in enumerate(location):
        is_branch = part in METHODS and index and isinstance(location[index - 1], int)
        if is_branch or part == KEY_MARK:
            continue  # the user wrote neither: pydantic names the branch of the union, and marks keys
        place += f"[{part}]" if isinstance(part, int) and not key_is_wrong else f".{part}"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        place += ".method"
    if problem["type"] == "fault" and problem["ctx"]["place"]:
        place += f".{problem['ctx']['place']}"
    return place.lstrip(".")
