"""What a README.md says about its repo in its front matter, and whether the Hub would take it.

A subset of the Hub's own check, made offline. It knows no repo and no request.
"""

import json
import re
from typing import Any

import yaml

MAX_FRONT_MATTER = 64 * 1024
MAX_ALIASES = 8
FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
REPO_ID = r"[\w.-]+(/[\w.-]+)?"
ITEMS = {  # keys that hold one text or a list of them, and how each must look
    "license": r"[a-z0-9][a-z0-9.+-]*",
    "language": r"[a-z]{2,3}([-_][A-Za-z0-9-]+)?|multilingual|code",
    "base_model": REPO_ID,
    "datasets": REPO_ID,
    "tags": r".+",
    "metrics": r".+",
}
LISTS = ("tags", "datasets")
TEXTS = ("library_name", "pipeline_tag", "license_name", "license_link", "base_model_relation")


def front_matter(readme: str) -> tuple[dict[str, Any], list[str]]:
    """The metadata at the top of a card, as plain JSON, and what is wrong with it. None is no error."""
    match = FRONT_MATTER.match(readme)
    if match is None:
        return {}, []
    text = match.group(1)
    if len(text) > MAX_FRONT_MATTER:
        return {}, ["the metadata is too long"]
    try:
        if sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)) > MAX_ALIASES:
            return {}, ["the metadata has too many aliases"]
        # Dates become text. What JSON cannot hold (NaN, half a surrogate pair, a cycle) would break answers.
        plain = json.dumps(yaml.safe_load(text), allow_nan=False, ensure_ascii=False, default=str)
        plain.encode()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        return {}, [f"not valid YAML: {' '.join(str(error).split())[:300]}"]
    data = json.loads(plain)
    if not isinstance(data, dict | None):
        return {}, ["the metadata must be a mapping"]
    return data or {}, _errors(data or {})


def _items(data: dict[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else [] if value is None else [value]


def _errors(data: dict[str, Any]) -> list[str]:
    errors = [
        f'"{key}" holds {str(item)[:80]!r}, which is not allowed'
        for key, rule in ITEMS.items()
        for item in _items(data, key)
        if not isinstance(item, str) or not re.fullmatch(rule, item)
    ]
    errors += [f'"{key}" must be a list' for key in LISTS if not isinstance(data.get(key), list | None)]
    errors += [f'"{key}" must be a text' for key in TEXTS if not isinstance(data.get(key), str | None)]
    try:
        for model in data.get("model-index") or []:
            texts = [model["name"]]
            for result in model["results"]:
                texts += [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
                texts += [metric["type"] for metric in result["metrics"] if metric["value"] is not None]
            if not all(isinstance(text, str) for text in texts):
                errors.append('"model-index" has a name or type that is no text')
    except (KeyError, TypeError) as error:
        errors.append(f'"model-index" is not well formed: {error!r}')
    return errors


def tags(data: dict[str, Any]) -> list[str]:
    """The tags the Hub would show: the card's own, and those that follow from other keys."""
    found = [*_items(data, "tags"), *_items(data, "library_name"), *_items(data, "pipeline_tag")]
    found += _items(data, "language")
    for key, prefix in (("license", "license"), ("datasets", "dataset"), ("base_model", "base_model")):
        found += [f"{prefix}:{item}" for item in _items(data, key)]
    if data.get("base_model_relation"):
        found += [f"base_model:{data['base_model_relation']}:{item}" for item in _items(data, "base_model")]
    return list(dict.fromkeys(tag for tag in found if isinstance(tag, str)))
