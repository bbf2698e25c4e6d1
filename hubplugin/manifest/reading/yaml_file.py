"""A small YAML file, read strictly: bounded in size and aliases, no duplicate keys, no Python objects.

It knows syntax and nothing of what a manifest may say.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hubplugin.errors import ManifestError

ENDINGS = (".yaml", ".yml")  # of names of such files, where a name may mean something else
MAX_BYTES = 64 * 1024
MAX_ALIASES = 8  # nested aliases multiply; eight can at most reach a few hundred nodes


@dataclass(frozen=True)
class YamlFile:
    """The text, its hash, and what it says."""

    text: str
    sha256: str  # of the bytes
    data: Any


class _Loader(yaml.SafeLoader):
    """SafeLoader that also refuses duplicate keys and too many aliases."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                parser: Any = self  # types-PyYAML has no types for peek_event
                raise _refusal(f"more than {MAX_ALIASES} aliases", parser.peek_event())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key must be a word", key)
            if key.value in seen:
                raise _refusal(f"the key {key.value!r} stands twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refusal(what: str, at: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, at.start_mark)


def read(path: Path) -> YamlFile:
    """Read one file. Raises ManifestError with line and column where it is not a file of this kind."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ManifestError(str(path), f"cannot be read: {reason}", "give the path of a manifest") from error
    return parse(raw, str(path))


def parse(raw: bytes, place: str) -> YamlFile:
    """Read the bytes of a file. Raises ManifestError that names them by `place`."""
    if len(raw) > MAX_BYTES:
        raise ManifestError(place, f"has more than {MAX_BYTES} bytes", "give a manifest: a page of YAML, no data")
    try:
        text = raw.decode("utf-8")
        data = yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ManifestError(place, f"is not UTF-8 at byte {error.start}", "save it as UTF-8 text") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _syntax_error(place, error) from error
    return YamlFile(text, hashlib.sha256(raw).hexdigest(), data)


def _syntax_error(place: str, error: Exception) -> ManifestError:
    mark = getattr(error, "problem_mark", None)
    where = f"{place}:{mark.line + 1}:{mark.column + 1}" if mark else place
    if isinstance(error, RecursionError):
        return ManifestError(where, "brackets are nested too deeply", "a manifest needs four levels")
    if isinstance(error, yaml.reader.ReaderError):
        letter = f"U+{error.character:04X}"
        return ManifestError(where, f"holds the character {letter}", "save it as plain text without it")
    said = [getattr(error, name, None) for name in ("context", "problem")]
    problem = ", ".join(part for part in said if part) or str(error).splitlines()[0]
    return ManifestError(where, f"not valid YAML: {problem}", "mend the syntax on this line or the one above")
