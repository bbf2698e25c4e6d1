"""The line of the gate about chat templates: each renders the same conversations in the base and in the variant.

Knows tokenizers as transformers loads them, and the template that an older release keeps in chat_template.json.
"""

import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from hubplugin.errors import CalibrationError, GateError, one_line
from hubplugin.evaluation.gate.candidate import Candidate
from hubplugin.model.construction.tokenizer_files import NOW, read_tokenizer
from hubplugin.report import GateLine

CHOSEN, DEFAULT = "as chosen", "default"
FILE = "chat_template.json"  # vLLM reads it too
SYSTEM = {"role": "system", "content": "Answer in one sentence."}
TURNS = [
    {"role": "user", "content": "What is a variant?"},
    {"role": "assistant", "content": "A model made from another."},
    {"role": "user", "content": "And a gate?"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
# what a template may raise: its own refusal, and whatever its expressions run into
ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Outcomes = dict[str, str]  # by template and conversation: the text, or the template's error


def templates_equal(candidate: Candidate) -> GateLine:
    """Every template of the base makes of every conversation what the variant's does: the same text, or error."""
    name = "chat templates render as the base's"
    try:
        base, variant = (rendered(folder) for folder in (candidate.base, candidate.folder))
    except (CalibrationError, GateError) as error:
        return GateLine(name=name, passed=False, detail=f"{error.where}: {error.what}")
    if not base and not variant:
        return GateLine(name=name, passed=True, detail="the base has none")
    other = [key for key in sorted(base.keys() | variant.keys()) if base.get(key) != variant.get(key)]
    if other:
        key = min(other, key=lambda key: key.startswith(CHOSEN))  # a template's own name says more
        difference = _difference(base.get(key), variant.get(key))
        return GateLine(name=name, passed=False, detail=f"{key}: {difference}; {len(other)} renderings differ")
    return GateLine(name=name, passed=True, detail=f"{len(base)} renderings equal, of {_names(base)}")


def rendered(folder: Path) -> Outcomes:
    """What all templates of a folder make of all conversations; empty where it has no template."""
    tokenizer = read_tokenizer(folder)
    found: Outcomes = {}
    for name, template in _templates(tokenizer, folder):
        for words, conversation, options in _conversations():
            found[f"{name}, {words}"] = _outcome(tokenizer, template, conversation, options)
    return found


def _templates(tokenizer: Any, folder: Path) -> Iterator[tuple[str, str | None]]:
    """Names and texts. The text of the one that transformers chooses by itself, for it looks at the tools, is None."""
    own = tokenizer.chat_template
    if own:
        yield CHOSEN, None
        yield from _named(own).items()
    try:
        stored = json.loads((folder / FILE).read_text("utf-8"))
        other = stored.get("chat_template") if isinstance(stored, dict) else None
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise GateError(f"{folder}: {FILE}", f"cannot be read: {one_line(error)}", "repair or remove it") from error
    yield from ((f"{FILE} {name}", template) for name, template in _named(other or {}).items())


def _named(templates: Any) -> dict[str, str]:
    """Templates by name, from one text, a mapping, or a list of names and texts."""
    if isinstance(templates, str):
        return {DEFAULT: templates}
    if isinstance(templates, list):
        templates = {each.get("name"): each.get("template") for each in templates if isinstance(each, dict)}
    return {str(name): str(template) for name, template in templates.items()} if isinstance(templates, dict) else {}


def _conversations() -> Iterator[tuple[str, list[dict[str, str]], dict[str, Any]]]:
    """With and without a system turn, tools, and the start of an answer: in words, the turns, the options."""
    for system, tools, answer in product((False, True), repeat=3):
        words = [label for label, there in (("system", system), ("tools", tools), ("answer", answer)) if there]
        turns = [SYSTEM, *TURNS] if system else TURNS
        options = {"tools": [TOOL] if tools else None, "add_generation_prompt": answer}
        yield " + ".join(words) or "turns alone", turns, options


def _outcome(tokenizer: Any, template: str | None, turns: list[dict[str, str]], options: dict[str, Any]) -> str:
    """The rendered text, or the error."""
    now: Callable[[str], str] = NOW.strftime
    try:
        text = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], chat_template=template, tokenize=False, strftime_now=now, **options
        )
    except ERRORS as error:
        return f"{type(error).__name__}: {one_line(error)}"
    return str(text)


def _difference(base: str | None, variant: str | None) -> str:
    """Two outcomes that differ, in words."""
    if base is None or variant is None:
        return f"only the {'base' if variant is None else 'variant'} has it"
    same = next(
        (index for index, pair in enumerate(zip(base, variant, strict=False)) if pair[0] != pair[1]),
        min(len(base), len(variant)),
    )
    return f"{len(base)} characters in the base, {len(variant)} here; the first other one is number {same + 1}"


def _names(outcomes: Outcomes) -> str:
    return ", ".join(dict.fromkeys(key.split(", ")[0] for key in outcomes if not key.startswith(CHOSEN)))
