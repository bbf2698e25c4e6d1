"""What is wrong with a value of the manifest, in words about manifests instead of about its schema.

Knows pydantic's kinds of errors; what belongs under a key comes from the settings' descriptions (hints.py). Knows no
model and no torch.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic_core import ErrorDetails

from hubplugin.manifest.reading.hints import hint
from hubplugin.manifest.reading.sections import field_of, keys_of, section_of


def explain(problem: ErrorDetails, methods: Iterable[str]) -> tuple[str, str]:
    """Cause and remedy of one of pydantic's errors; `methods` are the words that `method:` takes."""
    kind, value = problem["type"], problem["input"]
    keys = [part for part in problem["loc"] if part != "[key]"]
    shown = _shown(value)
    if kind == "fault":
        return problem["ctx"]["what"], problem["ctx"]["fix"]
    if kind == "extra_forbidden":
        return f"{str(keys[-1])!r} is no key here", _nearest_key(keys)
    if kind == "missing":
        return "is missing", f"add it: {_wanted(keys)}"
    if kind == "literal_error":
        return f"{shown} is not supported", f"use {problem['ctx']['expected']}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return "a step names its method", f"use one of {', '.join(methods)}, such as {{method: gptq, bits: 4}}"
    if kind == "bool_type":
        return f"{shown} is neither yes nor no", "write true or false"
    if kind == "string_pattern_mismatch":
        return "is empty or holds a line break or a control character", "write it on one line"
    if problem["loc"][-1:] == ("[key]",) or (kind == "string_type" and _is_scalar(value)):
        return f"YAML reads {shown} as {type(value).__name__}, not as text", f'put it in quotes: "{value}"'
    if keys[:1] == ["variants"] and len(keys) in (2, 3) and kind.endswith("_type"):
        return f"{shown} is no list of steps", "write each step as `- {method: gptq, bits: 4}`"
    return f"{shown} is not what it takes", f"write {_wanted(keys)}"


def _wanted(keys: list[int | str]) -> str:
    """What to write under the last of these keys."""
    field = field_of(keys)
    return hint(field) if field else "another; see README, The manifest"


def _nearest_key(keys: list[int | str]) -> str:
    """What an unknown last key may have meant: the nearest of the keys allowed in its place, or all of them."""
    section = section_of(keys[:-1])
    allowed = keys_of(section) if section else []
    nearest = difflib.get_close_matches(str(keys[-1]), allowed, n=1)
    return f"did you mean `{nearest[0]}`?" if nearest else f"remove it; allowed here: {', '.join(allowed)}"


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, (dict, list))


def _shown(value: Any) -> str:
    """A value of the file, short, in words a YAML author uses."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool) or value is None:
        return "nothing" if value is None else str(value).lower()
    text = str(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}...") if isinstance(value, str) else text[:60]
