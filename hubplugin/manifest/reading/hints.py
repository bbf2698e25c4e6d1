"""What to write under a key, in words: made of a setting's description, its limits and its examples.

Knows pydantic's fields. Knows no particular setting, no file and no model.
"""

import re
from typing import Any, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic.fields import FieldInfo


def first_sentence(text: str) -> str:
    """The first sentence of a description, without its full stop."""
    return re.split(r"\.(?:\s|$)", text.strip(), maxsplit=1)[0].replace("\n", " ")


def hint(field: FieldInfo) -> str:
    """The first sentence, limits and examples of a setting: `a number of sequences, from 1 to 65536, such as 128`."""
    what = first_sentence(field.description or "another value")
    what = what[0].lower() + what[1:] if what[1:2].islower() or what[1:2] == " " else what
    examples = " or ".join(flow_yaml(example) for example in field.examples or ())
    return ", ".join(part for part in (what, limits(field), examples and f"such as {examples}") if part)


def limits(field: FieldInfo) -> str:
    """What numbers and lengths a field allows, in words; empty where it allows all."""
    found = {type(limit): limit for limit in _constraints(field)}
    low = high = ""
    if Ge in found and Le in found:
        return f"from {_number(found[Ge].ge)} to {_number(found[Le].le)}"
    if Gt in found:
        low = f"above {_number(found[Gt].gt)}"
    elif Ge in found:
        low = f"{_number(found[Ge].ge)} or more"
    if Lt in found:
        high = f"below {_number(found[Lt].lt)}"
    elif Le in found:
        high = f"at most {_number(found[Le].le)}"
    elif MaxLen in found:
        several = get_origin(field.annotation) is tuple
        high = f"at most {found[MaxLen].max_length} {'entries' if several else 'characters'}"
    return " and ".join(part for part in (low, high) if part)


def flow_yaml(value: Any) -> str:
    """A value as YAML on one line, as a manifest would hold it."""
    listed = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**6)
    return listed.strip()[1:-1]


def _constraints(source: Any) -> list[Any]:
    """The constraints of a field: its own, and those of its annotation, such as `Ratio | None`."""
    if isinstance(source, FieldInfo):
        return [*source.metadata, *_constraints(source.annotation)]
    metadata = [
        limit for item in getattr(source, "__metadata__", ()) for limit in getattr(item, "metadata", None) or [item]
    ]
    return metadata + [limit for inner in get_args(source) for limit in _constraints(inner)]


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
