"""What verifying a published model says: one line for each claim that was looked at, as text and as JSON.

Knows words; no model and no file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field

SCHEMA_VERSION = 1
WIDEST = 160  # letters of a claim that a line of text shows


class Outcome(StrEnum):
    """What came of one look."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Finding:
    """What a check found; its row gives it a name."""

    outcome: Outcome
    what: str = ""  # which of the things that a check looks at; empty: it looks at one
    claimed: str | None = None
    found: str | None = None
    detail: str = ""


def compared(claimed: Any, found: Any, what: str = "", detail: str = "", holds: bool | None = None) -> Finding:
    """A claim against what is there; `holds` where equality is not the question."""
    passed = claimed == found if holds is None else holds
    return Finding(Outcome.PASSED if passed else Outcome.FAILED, what, str(claimed), str(found), detail)


def number(value: float, unit: str = "") -> str:
    """A number and its unit; ratios with six digits."""
    text = str(value) if isinstance(value, int) else f"{value:.6g}"
    return f"{text} {unit}".strip()


def passed(detail: str, what: str = "") -> Finding:
    """Something that nobody claims in numbers, and that is as it should be."""
    return Finding(Outcome.PASSED, what, detail=detail)


def failed(detail: str, what: str = "") -> Finding:
    """The same where it is not."""
    return Finding(Outcome.FAILED, what, detail=detail)


def unchecked(why: str, what: str = "", claimed: str | None = None, found: str | None = None) -> Finding:
    """What could not be looked at, or not judged, and why."""
    return Finding(Outcome.NOT_CHECKED, what, claimed, found, why)


class Record(BaseModel):
    """Frozen, and written exactly as declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Line(Record):
    """One claim."""

    check: str  # the row of the table of checks
    what: str  # which of the things that the check looks at; empty: it looks at one
    outcome: Outcome
    claimed: str | None  # by report, card or configuration
    found: str | None  # in tensors, files or measurements
    detail: str

    def __str__(self) -> str:
        word = self.outcome.upper() if self.outcome is Outcome.FAILED else self.outcome
        return f"{word:<11}  {self.check}{f', {self.what}' if self.what else ''}: {self._said()}"

    def _said(self) -> str:
        if self.outcome is Outcome.PASSED:
            parts = [_short(self.found), self.detail]
        elif self.claimed is not None and self.found is not None:
            parts = [f"claimed {_short(self.claimed)}, found {_short(self.found)}", self.detail]
        else:
            parts = [f"{_short(self.claimed)} is claimed" if self.claimed is not None else "", self.detail]
        return "; ".join(part for part in parts if part) or "holds"


class Verification(Record):
    """All lines about one folder or repo."""

    schema_version: int = SCHEMA_VERSION
    hubplugin: str  # the release that looked
    target: str  # as it was asked for
    revision: str | None  # commit; None for a local folder
    made_by_hubplugin: bool  # whether it has a report of ours
    lines: tuple[Line, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def holds(self) -> bool:
        """Whether no claim was found to be false."""
        return not any(line.outcome is Outcome.FAILED for line in self.lines)

    def count(self, outcome: Outcome) -> int:
        """How many lines have this outcome."""
        return sum(line.outcome is outcome for line in self.lines)

    def text(self) -> str:
        """The lines for a terminal."""
        return "\n".join(map(str, self.lines))

    def json_text(self) -> str:
        """The same as a JSON object."""
        return self.model_dump_json(indent=1)


def lines(check: str, findings: Iterable[Finding]) -> Iterable[Line]:
    """The findings of a row as lines."""
    for one in findings:
        yield Line(
            check=check,
            what=_one_line(one.what),
            outcome=one.outcome,
            claimed=one.claimed,
            found=one.found,
            detail=_one_line(one.detail),
        )


def _short(text: str | None) -> str:
    """A claim as one line that fits beside others."""
    whole = _one_line(text or "")
    return whole if len(whole) <= WIDEST else f"{whole[: WIDEST - 1]}…"


def _one_line(text: str) -> str:
    """Text from elsewhere without what a terminal would act on."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))
