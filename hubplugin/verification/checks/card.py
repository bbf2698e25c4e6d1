"""Checks of a card of ours against its report: the front matter by key, and every line with numbers in it.

The card is a pure function of the report, so what it should say is made anew. What a reader added, and what another
release words otherwise, is named and not judged.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml
from jinja2.exceptions import TemplateError

import hubplugin
from hubplugin import front_matter
from hubplugin.errors import one_line
from hubplugin.evaluation.cards import card as cards
from hubplugin.evaluation.cards import card_metadata, markdown
from hubplugin.report import FILE_NAME, Report
from hubplugin.verification.claims import FENCE
from hubplugin.verification.outcome import Finding, compared, failed, passed, unchecked
from hubplugin.verification.subject import Subject

NUMBER = re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{12,}\b|\d+(?:[.,:]\d+)*(?: ?(?:[GMk]?B|[KM]|%)(?!\w))?")
MOST = 12  # lines of a card that are shown one by one


def metadata(subject: Subject) -> Iterator[Finding]:
    """Every key of the front matter: licence, base, relation, sizes, model-index, versions."""
    if subject.report is None or subject.card.fault:
        return
    found, expected = subject.card.metadata, _front_matter(subject.report)
    for key, wanted in expected.items():
        if key not in found:
            yield _absent(subject.report, key)
        elif differing := list(_differences(wanted, found[key], key)):
            for place, claimed, should in differing:
                yield compared(claimed, should, place, f"{FILE_NAME} says the latter", holds=False)
        else:
            yield passed(_brief(wanted), key)
    if added := [str(key) for key in found if key not in expected]:
        yield unchecked(f"keys that hubplugin does not write: {', '.join(added)}")


def _absent(made: Report, key: str) -> Finding:
    """A key that this release writes and the card lacks."""
    if made.hubplugin == hubplugin.__version__:
        return failed(f"the front matter has no such key, {FILE_NAME} implies it", key)
    return unchecked(f"the front matter has no such key; hubplugin {made.hubplugin} wrote it", key)


def _front_matter(made: Report) -> dict[str, Any]:
    """What the front matter should say, as YAML reads it."""
    read: dict[str, Any] = yaml.load(markdown.front_matter(card_metadata.metadata(made)), front_matter.Loader)
    return read


def _differences(wanted: Any, found: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Place, what is said there and what should be. Lists of words may be longer: tags are anybody's to add."""
    if isinstance(wanted, dict):
        entries = found if isinstance(found, dict) else {}
        for key, value in wanted.items():
            yield from _differences(value, entries.get(key), f"{place}.{key}")
    elif isinstance(wanted, list) and wanted and isinstance(wanted[0], dict):
        others = _as_list(found)
        for index, value in enumerate(wanted):
            other = others[index] if index < len(others) else None
            yield from _differences(value, other, f"{place}.{_label(value, index)}")
    elif isinstance(wanted, list):
        yield from ((place, "nothing", value) for value in wanted if value not in _as_list(found))
    elif type(wanted) is not type(found) or wanted != found:
        yield place, "nothing" if found is None else found, wanted


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _label(entry: dict[str, Any], index: int) -> str:
    """What an entry of a list is called: the metric of a model-index by its type."""
    return str(entry.get("type") or index)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return f"{len(value)} entries"
    if isinstance(value, list):
        return _brief(value[0]) if isinstance(value[0], dict) else ", ".join(map(str, value))
    return str(value)


def text(subject: Subject) -> Iterator[Finding]:
    """Every line of the card with a number in it says what the report does."""
    if subject.report is None or subject.card.text is None:
        return
    try:
        rendered = cards.render(subject.report)
    except TemplateError as error:
        yield unchecked(f"this release cannot write the report's card: {one_line(error)}")
        return
    expected, found = _by_key(_body(rendered)), _by_key(subject.card.lines)
    equal = 0
    reworded: list[str] = []
    wrong: list[tuple[str, str]] = []
    for key, wanted in expected.items():
        said = found.get(key, [])
        equal += sum((Counter(wanted) & Counter(said)).values())
        left, others = _without(wanted, said), _without(said, wanted)
        wrong += zip(others, left, strict=False)
        reworded += left[len(others) :]
    for claimed, should in wrong[:MOST]:
        yield compared(claimed, should, _label_of(should), f"{FILE_NAME} says the latter", holds=False)
    if wrong[MOST:]:
        yield failed(f"and {len(wrong) - MOST} more lines")
    if equal and not wrong:
        yield passed(f"{equal} lines with numbers say what {FILE_NAME} does")
    if reworded:
        yield unchecked(f"{len(reworded)} lines are worded otherwise or left out, first: {reworded[0]}")
    added = [line for key, lines in found.items() for line in _without(lines, expected.get(key, []))]
    if (more := len(added) - len(wrong)) > 0:
        strange = [line for key, lines in found.items() if key not in expected for line in lines]
        yield unchecked(f"{more} lines with numbers that hubplugin did not write, first: {(strange or added)[0]}")


def _body(card: str) -> list[str]:
    """The lines below the front matter of a card of ours."""
    lines = [line.rstrip() for line in card.split("\n")]
    return lines[lines.index(FENCE, 1) + 1 :]


def _by_key(lines: Iterable[str]) -> dict[str, list[str]]:
    """Lines with numbers, by what must not change: of a table's row its section and first cell, else the words."""
    keyed: dict[str, list[str]] = {}
    section = ""
    for line in lines:
        if line.startswith("## "):
            section = line
        if NUMBER.search(line):
            row = line.startswith("|")
            key = f"{section}|{line.split('|')[1].strip()}" if row else NUMBER.sub("#", line)
            keyed.setdefault(key, []).append(line)
    return keyed


def _without(lines: Sequence[str], others: Sequence[str]) -> list[str]:
    """Lines that are not among the others, as often as they are not."""
    return list((Counter(lines) - Counter(others)).elements())


def _label_of(line: str) -> str:
    """A row's first cell; the beginning of another line."""
    if line.startswith("|"):
        return line.split("|")[1].strip()
    return " ".join(line.split()[:4]).strip("-* ")
