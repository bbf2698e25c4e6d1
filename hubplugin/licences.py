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
    Licence("noderiv*", Derivatives.FORBIDDEN),
    Licence("nc", Derivatives.DUTIES),
    Licence("noncommercial", Derivatives.DUTIES),
    Licence("research", Derivatives.DUTIES),
    Licence("amlr", Derivatives.DUTIES),  # Apple's, for research
    Licence("deepfloyd", Derivatives.DUTIES),
    Licence("grok*", Derivatives.DUTIES),
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
    """What the rows of a licence say of derivatives; `licence` is one id or several, separated by commas.

    A licence that the Hub has no id for must be read by whoever publishes, as `other` must.
    """
    meant = same_licence(licence)
    found = {row.derivatives for word in [*_words(licence), *_words(meant)] for row in _rows(word)}
    return found | ({Derivatives.DUTIES} if other_id(licence) and not meant else set())


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


def same_licence(licence: str | None) -> str | None:
    """The Hub's ids for a licence spelled in another way, such as "Apache License, Version 2.0"; None for no licence
    and for one that is not recognised with certainty."""
    if licence is None:
        return None
    whole = _BY_SPELLING.get(_spelling(licence))
    parts = [_BY_SPELLING.get(_spelling(part)) for part in licence.split(", ")]
    return whole or (", ".join(part for part in parts if part) if all(parts) else None)


def _spelling(licence: str) -> str:
    """A licence without what people write in different ways: case, filler words, hyphens, a trailing ".0"."""
    text = re.sub(r"v(?=[0-9])", " ", licence.lower().replace("licence", "license"))
    words = re.findall(r"[a-z]+\+*|[0-9.]+[0-9]|[0-9]", text)
    return "".join(word.removesuffix(".0") for word in words if word not in _FILLERS)


_FILLERS = {"the", "v", "version", "license", "agreement", "community", "terms", "of", "use", "international", "gnu"}
_BY_SPELLING = {_spelling(name): name for name in sorted(LICENCE_IDS, reverse=True)}


def _words(licence: str | None) -> list[str]:
    text = re.sub("no[- ]?deriv", "noderiv", (licence or "").lower())
    return re.split("[-_, ]", re.sub("non[- ]?commercial", "noncommercial", text))


def _rows(word: str) -> Iterator[Licence]:
    return (row for row in LICENCES if fnmatchcase(word, row.word))
