"""Conversations and settings that outlast the page: in the browser's own storage over a reload, and saved as a file.

Knows turns and the page's parts; no server and no question. What comes back from a browser is checked like any input.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import gradio as gr

from serve.catalogue import Listed
from serve.chat_page import about, conversation, layout
from serve.chat_page.conversation import Turn
from serve.chat_page.markup.tokens import NOTHING, PROBABILITY

LONGEST = 1_000_000  # characters that are kept; browsers give a page a few MB, and encryption makes it longer
ROLES = ("user", "assistant")
SAVE = """
file => {
  if (!file) return;
  const {name, type, text} = JSON.parse(file);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
"""


@dataclass(frozen=True)
class Kept:
    """What a browser has kept: of both sides, the model that was chosen and what was said."""

    models: tuple[str, str] = ("", "")
    turns: tuple[list[Turn], list[Turn]] = field(default_factory=lambda: ([], []))


def read(kept: Any) -> Kept:
    """What a browser sends as kept; nothing where it is anything else."""
    sides = kept.get("sides") if isinstance(kept, dict) else None
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(side, dict) for side in sides):
        return Kept()
    names = [str(side.get("model") or "") for side in sides]
    first, second = (_turns(side.get("turns")) for side in sides)
    return Kept((names[0], names[1]), (first, second))


def _turns(turns: Any) -> list[Turn]:
    rows = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    texts = [{str(key): value for key, value in row.items() if isinstance(value, str)} for row in rows]
    return [row for row in texts if row.get("role") in ROLES and "content" in row]


def kept(model: str | None, other: str, turns: list[Turn], other_turns: list[Turn]) -> dict[str, Any]:
    """What the browser is to keep: the latest questions and answers, as many as there is room for."""
    sides: list[dict[str, Any]] = [{"model": model or "", "turns": turns}, {"model": other, "turns": other_turns}]
    if len(json.dumps(sides)) > LONGEST:
        sides = [{**side, "turns": _without_tokens(side["turns"])} for side in sides]
    while len(json.dumps(sides)) > LONGEST:
        longest = max(sides, key=lambda side: len(json.dumps(side)))
        longest["turns"] = longest["turns"][2:]
    return {"sides": sides}


@dataclass(frozen=True)
class KeptSettings:
    """How models were asked last."""

    system: str = ""
    temperature: float = layout.ALONE
    top_p: float = layout.TOP_P
    tokens: int = layout.USUAL
    seed: str = ""
    colour: str = NOTHING
    compare: str = layout.NONE
    alone: float | None = None  # the temperature of one model, while two are compared


def read_settings(kept: Any) -> KeptSettings:
    """What a browser sends as kept settings; the page's own for each that is anything else."""
    given, usual = kept if isinstance(kept, dict) else {}, KeptSettings()

    def number(key: str, least: float, most: float) -> Any:
        value = given.get(key)
        sound = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        return value if sound else getattr(usual, key)

    # An earlier page kept whether tokens were shown.
    colour = given.get("colour", PROBABILITY if given.get("sure") is True else None)
    texts = {key: given[key] for key in ("system", "seed", "compare") if isinstance(given.get(key), str)}
    return KeptSettings(
        temperature=number("temperature", 0, layout.HOTTEST),
        top_p=number("top_p", layout.LEAST_TOP_P, layout.TOP_P),
        tokens=int(number("tokens", layout.FEWEST, layout.MOST)),
        colour=colour if isinstance(colour, str) and colour in layout.COLOURS else usual.colour,
        alone=number("alone", 0, layout.HOTTEST),
        **texts,
    )


def connect_settings(parts: layout.Parts, alone: gr.State, chosen: Any) -> None:
    """Keep the settings when one is changed, and after models were `chosen`. What the page sets by itself is not told
    as a change, so that a page that is being opened does not keep its own before it has read what was kept."""
    controls = parts.controls
    inputs: list[Any] = [
        controls.system,
        controls.temperature,
        controls.top_p,
        controls.tokens,
        controls.seed,
        controls.colour,
        controls.compare,
        alone,
    ]

    def told(*values: Any) -> dict[str, Any]:
        return dict(zip(asdict(KeptSettings()), values, strict=True))

    # What is pasted into a box is told when it is left.
    changed = [*(each.input for each in inputs[:6]), controls.system.blur, controls.seed.blur]
    gr.on(changed, told, inputs, parts.kept_settings, queue=False, trigger_mode="always_last", **layout.QUIET)
    chosen.then(told, inputs, parts.kept_settings, queue=False, **layout.QUIET)


def connect(page: gr.Blocks, parts: layout.Parts, listed: gr.State, changes: Sequence[Any]) -> None:
    """Keep the conversations after each of these events, show them when the page is opened, and save them."""
    first, second, controls = parts.first, parts.second, parts.controls
    said = [controls.model, controls.compare, first.turns, second.turns]
    for change in changes:
        change.then(kept, said, parts.kept, queue=False, **layout.QUIET)

    def shown(stored: Any) -> tuple[Any, ...]:
        turns = read(stored).turns
        return (*conversation.drawn(*turns), *turns)

    page.load(shown, parts.kept, [first.chat, second.chat, first.turns, second.turns], **layout.QUIET)
    for button, written in ((parts.actions.json, as_json), (parts.actions.markdown, as_markdown)):
        saved = button.click(written, [listed, *said], parts.file, queue=False, **layout.QUIET)
        saved.then(None, parts.file, None, js=SAVE)


def _without_tokens(turns: list[Turn]) -> list[Turn]:
    """What was said alone: tokens with their probabilities are many times as long."""
    return [{key: value for key, value in turn.items() if key != "tokens"} for turn in turns]


def as_json(listed: list[Listed], *said: Any) -> str:
    """The file for programs: every turn as it was said, each answer with its model, settings and measures."""
    sides = [
        {"model": name, "facts": _facts(name, listed), "turns": _without_tokens(turns)} for name, turns in _sides(*said)
    ]
    text = json.dumps({"saved": _now(), "conversations": sides}, ensure_ascii=False, indent=2)
    return _file("conversation.json", "application/json", f"{text}\n") if sides else ""


def as_markdown(listed: list[Listed], *said: Any) -> str:
    """The file for readers: one conversation after the other, as it was said."""
    lines = [f"# Chat, {_now()}"]
    for name, turns in _sides(*said):
        facts = " · ".join(fact for row in listed if row.name == name for fact in about.facts(row, listed))
        lines += [f"## {name}", *([facts] if facts else [])]
        for turn in turns:
            lines += ["### Question" if turn["role"] == "user" else f"### Answer of {turn.get('model', name)}"]
            lines += [turn["content"]]
            lines += [f"*{turn['measures']}; {turn['settings']}*"] if turn.get("measures") else []
    return _file("conversation.md", "text/markdown", "\n\n".join(lines) + "\n") if len(lines) > 1 else ""


def _sides(
    model: str | None, other: str, turns: list[Turn], other_turns: list[Turn]
) -> Iterator[tuple[str, list[Turn]]]:
    """The conversations that are on the page and not empty."""
    if turns:
        yield model or "no model", turns
    if other and other_turns:
        yield other, other_turns


def _facts(name: str, listed: list[Listed]) -> dict[str, Any]:
    return next((asdict(row) for row in listed if row.name == name), {})


def _file(name: str, kind: str, text: str) -> str:
    return json.dumps({"name": name, "type": kind, "text": text})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
