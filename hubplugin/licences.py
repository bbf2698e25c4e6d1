"""LICENCES: what licences ask of a model made from another, one row for every word that the Hub's licence ids hold.

Knows licence ids as model cards write them (https://huggingface.co/docs/hub/repositories-licenses). Knows no model and
gives no legal advice: a licence without a row asks for nothing that is checked here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from hubplugin.licence_ids import LICENCE_IDS


class Derivatives(Enum):
    """What a licence says of derivatives."""

    FORBIDDEN = "forbidden"
    DUTIES = "duties"  # allowed, under conditions that whoever publishes must accept


@dataclass(frozen=True)
class Licence:
    """One row."""

    word: str  # pattern, as of a file name, of a word of a licence id; "cc-by-nd-4.0" has four words
    derivatives: Derivatives
    notice: str | None = None  # the sentence that must stand on the card of a derivative


LICENCES = (
    Licence("nd", Derivatives.FORBIDDEN),
    Licence("nc", Derivatives.DUTIES),
    Licence("llama*", Derivatives.DUTIES, "Built with Llama."),
    Licence(
        "gemma*",
        Derivatives.DUTIES,
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.",
    ),
    Licence("other*", Derivatives.DUTIES),
    Licence("*rail*", Derivatives.DUTIES),
)


def derivatives(licence: str | None) -> set[Derivatives]:
    """What the rows of a licence say of derivatives; `licence` is one id or several, separated by commas."""
    return {row.derivatives for word in _words(licence) for row in _rows(word)}


def notice(licence: str | None) -> str | None:
    """The sentence that a card must repeat, by the first word of the licence."""
    first = _words(licence)[0]
    return next((row.notice for row in _rows(first) if row.notice), None)


def other_id(licence: str | None) -> str | None:
    """What `license_name:` must say of a licence that the Hub knows no id for; None for known ones.

    The Hub refuses a card whose `license:` is not an id of its list, and takes `other` with a name for all else.
    """
    ids = [word for word in (licence or "").split(", ") if word]
    if all(word in LICENCE_IDS for word in ids):
        return None
    return re.sub("[^a-z0-9.]+", "-", ", ".join(ids).lower()).strip("-") or "unknown"


def _words(licence: str | None) -> list[str]:
    return re.split("[-, ]", (licence or "").lower())


def _rows(word: str) -> Iterator[Licence]:
    return (row for row in LICENCES if fnmatchcase(word, row.word))
