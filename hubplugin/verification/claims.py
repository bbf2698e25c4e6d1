"""What cards, names and tags claim of a model, in the words that people use: "4-bit", "W4A16", "GPTQ-Int4", "128g".

Knows YAML and words; no tensor.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hubplugin import front_matter

CARD = "README.md"
FENCE = "---"
# words are split at everything but letters and digits, so "Llama_4bit-128g" reads as "Llama 4bit 128g"
BITS = (r"\bint ?([2-8])\b", r"\b([2-8]) ?bits?\b", r"\bw([2-8])a(?:8|16)\b")
GROUPS = (r"\bg(16|32|64|128|256|512|1024)\b", r"\b(16|32|64|128|256|512|1024)g\b")
CONVERSATIONAL = r"\b(instruct|chat|conversational)\b"
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
PARAMETERS = ("parameters", "num_parameters", "parameter_count", "params", "model_size")  # keys of front matters
TOLERANCE = 0.05  # of a size that a front matter rounds


@dataclass(frozen=True)
class Card:
    """README.md of a model: its text and its front matter."""

    text: str | None  # None: there is none
    metadata: dict[str, Any] = field(default_factory=dict)
    fault: str = ""  # why the front matter cannot be read; empty where it can

    def texts(self, key: str) -> tuple[str, ...]:
        """A field that may be a string or a list of strings."""
        value = self.metadata.get(key)
        values = value if isinstance(value, list) else [value]
        return tuple(item for item in values if isinstance(item, str))

    @property
    def lines(self) -> list[str]:
        """The lines below the front matter."""
        lines = (self.text or "").split("\n")
        return lines[lines.index(FENCE, 1) + 1 :] if lines[0] == FENCE and FENCE in lines[1:] else lines


def card(folder: Path) -> Card:
    """The card of a folder, whatever is wrong with it."""
    try:
        text = (folder / CARD).read_text("utf-8-sig")
    except FileNotFoundError:
        return Card(None, fault=f"there is no {CARD}")
    except (OSError, UnicodeDecodeError) as error:
        return Card("", fault=f"{CARD} cannot be read: {type(error).__name__}")
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    lines = text.split("\n")
    if lines[0] != FENCE:
        return Card(text, fault=f"{CARD} has no front matter")
    if FENCE not in lines[1:]:
        return Card(text, fault="the front matter does not end")
    try:
        values = yaml.load("\n".join(lines[1 : lines.index(FENCE, 1)]), front_matter.Loader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        return Card(text, fault=f"the front matter is no YAML: {' '.join(str(error).split())[:120]}")
    if not isinstance(values, dict):
        return Card(text, fault="the front matter holds no mapping")
    return Card(text, values)


def bits_in(words: str) -> set[int]:
    """The widths of codes that a name or tag names."""
    return _numbers(BITS, words)


def groups_in(words: str) -> set[int]:
    """The group sizes that a name or tag names."""
    return _numbers(GROUPS, words)


def conversational(words: Iterable[str]) -> bool:
    """Whether a name or tag says that the model answers in conversations."""
    return any(re.search(CONVERSATIONAL, _split(word)) for word in words)


def _numbers(patterns: Iterable[str], words: str) -> set[int]:
    text = _split(words)
    return {int(match.group(1)) for pattern in patterns for match in re.finditer(pattern, text)}


def _split(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", words.lower())


@dataclass(frozen=True)
class Size:
    """A size that a front matter names: a number of parameters, or of bytes."""

    key: str
    written: str
    value: float
    in_bytes: bool

    def holds(self, found: float) -> bool:
        """Whether what was counted is what is claimed, as far as it was rounded."""
        digits = re.search(r"[\d.]+", self.written)
        decimals = len(digits.group().partition(".")[2]) if digits else 0
        unit = self.value / float(digits.group()) if digits and float(digits.group()) else 1.0
        return abs(found - self.value) <= max(TOLERANCE * self.value, 0.5 * unit * 10**-decimals)


def sizes(metadata: dict[str, Any]) -> Iterator[Size]:
    """The sizes that a front matter names."""
    for key in PARAMETERS:
        written = str(metadata.get(key, "")).strip().replace(",", "")
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kmbt])|([kmg])i?b)?", written.lower())
        if match and key in metadata and not isinstance(metadata[key], bool):
            number, unit, of_bytes = match.groups()
            factor = {"k": 1e3, "m": 1e6, "g": 1e9}[of_bytes] if of_bytes else UNITS[unit] if unit else 1.0
            yield Size(key, written, float(number) * factor, bool(of_bytes))
