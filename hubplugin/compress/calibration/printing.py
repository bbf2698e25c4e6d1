"""Mappings and lists that a chat template may read but not print: what Python would write is no text of a chat.

Templates print with `str`; `tojson`, loops and keys work as ever. Knows no turns and no template.
"""

from typing import Any, NoReturn


def guarded(value: Any) -> Any:
    """The value with all mappings and lists in it replaced by such that raise ValueError when they are printed."""
    if isinstance(value, dict):
        return _Mapping({key: guarded(item) for key, item in value.items()})
    return _List(map(guarded, value)) if isinstance(value, list) else value


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"the template prints {what} as Python writes it, not as text or JSON")


class _Mapping(dict[Any, Any]):
    def __str__(self) -> str:
        _refuse(f"the mapping with the keys {', '.join(map(str, self))}")

    __repr__ = __str__


class _List(list[Any]):
    def __str__(self) -> str:
        _refuse(f"a list of length {len(self)}")

    __repr__ = __str__
