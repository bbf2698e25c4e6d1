"""Where a key of a manifest stands in the schema: the settings class around it, and its field.

Knows how pydantic's annotations nest. Knows no particular setting, no file and no message.
"""

from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from hubplugin.manifest.base import Settings
from hubplugin.manifest.schema import Manifest


def section_of(parents: Sequence[str | int]) -> type[Settings] | None:
    """The settings class that holds the keys below `parents`, which are keys, indices and names of methods, as pydantic
    locates errors; None where no settings class is there.
    """
    annotation: Any = Manifest
    for part in parents:
        annotation = _below(_plain(annotation), part)
    found = [one for one in _choices(_plain(annotation)) if _is_settings(one)]
    return found[0] if len(found) == 1 else None  # several: steps, which say below `method` which they are


def field_of(keys: Sequence[str | int]) -> FieldInfo | None:
    """The field of the last key that is a setting: that of `files` for (calibrate, files, 1)."""
    for end in range(len(keys), 0, -1):
        section = section_of(keys[: end - 1])
        if section and (field := fields_by_key(section).get(str(keys[end - 1]))):
            return field
    return None


def fields_by_key(section: type[Settings]) -> dict[str, FieldInfo]:
    """The fields of a settings class by the keys that a manifest may give them by, former names last."""
    fields = {_key(name, field): field for name, field in section.model_fields.items()}
    former = {key: field for field in section.model_fields.values() for key in _keys(field)[1:]}
    return {**fields, **former}


def keys_of(section: type[Settings]) -> list[str]:
    """The keys of a settings class, in the order of its fields, without former names."""
    return [_key(name, field) for name, field in section.model_fields.items()]


def _keys(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []


def _key(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _below(annotation: Any, part: str | int) -> Any:
    """The annotation one key, index or method deeper; None where there is none."""
    if _is_settings(annotation):
        field = fields_by_key(annotation).get(str(part))
        return field.annotation if field else None
    if get_origin(annotation) in (tuple, dict):
        arguments = get_args(annotation)
        return arguments[1] if get_origin(annotation) is dict else arguments[0]
    if (choices := _choices(annotation)) and len(choices) > 1:
        below = (inner if _is_method(inner, part) else _below_one_or_several(inner, part) for inner in choices)
        return next((inner for inner in below if inner is not None), None)
    return None


def _below_one_or_several(annotation: Any, part: str | int) -> Any:
    """As `_below`, of one choice of a union: a list is gone into by an index, settings by a key; steps by neither."""
    if _is_settings(annotation):
        return None if isinstance(part, int) or "method" in annotation.model_fields else _below(annotation, part)
    return _below(annotation, part) if isinstance(part, int) else None


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The annotations of a union; of any other, itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _plain(annotation: Any) -> Any:
    """An annotation without `Annotated` and without `| None`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        inner = [one for one in get_args(annotation) if one is not type(None)]
        return _plain(inner[0]) if len(inner) == 1 else annotation
    return annotation


def _is_method(annotation: Any, name: str | int) -> bool:
    """Whether an annotation is the settings class of this method."""
    method = annotation.model_fields.get("method") if _is_settings(annotation) else None
    return method is not None and method.annotation == Literal[name]


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)
