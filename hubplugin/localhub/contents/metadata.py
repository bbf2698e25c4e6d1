"""The YAML metadata of a repo card (README.md): parse it, validate it, derive the repo's tags from it.

The rules are a subset of the Hub's own. This module knows no repo, no database and no HTTP request.
"""

import json
import re
from typing import Any

import yaml

from hubplugin import front_matter
from hubplugin.licence_ids import LICENCE_IDS

MAX_METADATA_LENGTH = 64 * 1024  # characters
MAX_ALIASES = 8  # a few lines of nested aliases can expand to gigabytes
FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
REPO_ID = r"[\w.-]+(/[\w.-]+)?"
STRING_OR_LIST = {  # keys that hold a string or a list of strings, and the pattern of each string
    "language": r"[a-z]{2,3}([-_][A-Za-z0-9-]+)?|multilingual|code",
    "base_model": REPO_ID,
    "datasets": REPO_ID,
    "tags": r".+",
    "metrics": r".+",
}
LIST_KEYS = ("tags",)
STRING_KEYS = ("library_name", "pipeline_tag", "license_name", "license_link", "base_model_relation")

DATASET_TAGS = (  # keys of a dataset's card that become tags with their name before them
    "annotations_creators",
    "language_creators",
    "language",
    "license",
    "multilinguality",
    "size_categories",
    "source_datasets",
    "task_categories",
    "task_ids",
)


def parse_card(readme: str) -> tuple[dict[str, Any], list[str]]:
    """A card's metadata as plain JSON, and a list of errors. A card without metadata is valid."""
    match = FRONT_MATTER.match(readme)
    if match is None:
        return {}, []
    text = match.group(1)
    if len(text) > MAX_METADATA_LENGTH:
        return {}, ["the metadata is too long"]
    try:
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)) > MAX_ALIASES:
            return {}, ["the metadata has too many aliases"]
        # Dates become strings. What JSON cannot represent (NaN, a lone surrogate, a cycle) is an error, since the API
        # returns the metadata as JSON.
        as_json = json.dumps(yaml.load(text, front_matter.Loader), allow_nan=False, ensure_ascii=False, default=str)
        as_json.encode()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        return {}, [f"not valid YAML: {' '.join(str(error).split())[:300]}"]
    data = json.loads(as_json)
    if not isinstance(data, dict | None):
        return {}, ["the metadata must be a mapping"]
    return data or {}, _validate(data or {})


def as_list(data: dict[str, Any], key: str) -> list[Any]:
    """The value of a key that holds one item or a list of them."""
    value = data.get(key)
    return value if isinstance(value, list) else [] if value is None else [value]


def _validate(data: dict[str, Any]) -> list[str]:
    errors = [
        f'"{key}" holds {str(item)[:80]!r}, which is not allowed'
        for key, pattern in STRING_OR_LIST.items()
        for item in as_list(data, key)
        if not isinstance(item, str) or not re.fullmatch(pattern, item)
    ]
    errors += [licence_error(item) for item in as_list(data, "license") if str(item) not in LICENCE_IDS]
    errors += [f'"{key}" must be a list' for key in LIST_KEYS if not isinstance(data.get(key), list | None)]
    errors += [f'"{key}" must be a string' for key in STRING_KEYS if not isinstance(data.get(key), str | None)]
    return errors + _validate_model_index(data.get("model-index"))


def licence_error(licence: Any) -> str:
    """What is wrong with a licence that is not one of the Hub's."""
    ids = ", ".join(sorted(LICENCE_IDS))
    return f'"license" must be one of the Hub\'s ids, not {str(licence)[:80]!r}; for another licence write other: {ids}'


def _validate_model_index(model_index: Any) -> list[str]:
    """Evaluation results: names and types must be strings, and every metric needs a value."""
    try:
        for model in model_index or []:
            strings = [model["name"]]
            for result in model["results"]:
                strings += [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
                strings += [metric["type"] for metric in result["metrics"] if metric["value"] is not None]
            if not all(isinstance(string, str) for string in strings):
                return ['"model-index" has a name or type that is not a string']
    except (KeyError, TypeError) as error:
        return [f'"model-index" is not well formed: {error!r}']
    return []


def tags(data: dict[str, Any], kind: str = "models") -> list[str]:
    """The repo's tags as the Hub shows them: those of the card, and those that follow from its other keys."""
    repo_tags = [*as_list(data, "tags"), *as_list(data, "library_name"), *as_list(data, "pipeline_tag")]
    prefixed = ("license",) if kind != "datasets" else DATASET_TAGS
    if kind != "datasets":
        repo_tags += as_list(data, "language")
    for key, prefix in (*zip(prefixed, prefixed, strict=True), ("datasets", "dataset"), ("base_model", "base_model")):
        repo_tags += [f"{prefix}:{item}" for item in as_list(data, key)]
    if data.get("base_model_relation"):
        repo_tags += [f"base_model:{data['base_model_relation']}:{item}" for item in as_list(data, "base_model")]
    return list(dict.fromkeys(tag for tag in repo_tags if isinstance(tag, str)))


def new_card(data: dict[str, Any]) -> bytes:
    """A card that has nothing but metadata."""
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n".encode()
