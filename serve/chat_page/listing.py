"""The choosers of models, what is known of the chosen, and the settings that follow from it.

Knows the page's parts and `client`'s list of models; nothing of questions and answers.
"""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from hubplugin.errors import ServeError
from serve import client
from serve.catalogue import Listed
from serve.chat_page import about, keeping, layout


def connect(page: gr.Blocks, parts: layout.Parts, base_url: str, model: str | None, api_key: str | None) -> gr.State:
    """Ask for the models whenever the page is opened, and follow what is chosen. Returns where the list is."""
    controls = parts.controls
    listed = gr.State([])
    before = gr.State(None)  # the temperature of one model, while two are compared

    def names(stored: Any, stored_settings: Any) -> tuple[Any, ...]:
        before = keeping.read_settings(stored_settings)
        chosen_before = (before.system, before.temperature, before.top_p, before.tokens, before.seed, before.colour)
        try:
            rows = client.catalogue(base_url, api_key=api_key, known=model)
        except ServeError as error:
            return gr.skip(), gr.skip(), [], one_line(error), *chosen_before, before.alone
        served = [row.name for row in rows]
        kept = keeping.read(stored)
        wanted = (kept.models[0] if kept.turns[0] else "", model, *served)
        chosen = next((name for name in wanted if name in served), None)
        models = gr.update(choices=served, value=chosen)
        return models, others(rows, chosen, before.compare), rows, "", *chosen_before, before.alone

    def followed(
        rows: list[Listed], chosen: str | None, other: str, temperature: float, tokens: float, alone: float | None
    ) -> tuple[Any, ...]:
        compared = others(rows, chosen, other)
        two = bool(other := compared["value"])
        value: dict[str, Any] = {}  # without one the slider stays: Gradio tells of a choice more than once
        if two and alone is None:
            alone, value = temperature, {"value": layout.COMPARED}
        elif not two and alone is not None:
            alone, value = None, {"value": alone}
        return (
            about.head(chosen, rows, always=two),
            about.head(other, rows, always=two),
            gr.update(visible=two),
            gr.update(label=layout.TEMPERATURE[two], **value),
            limited(tokens, [row for row in rows if row.name in (chosen, other)]),
            alone,
            compared,
            "",
        )

    inputs = [listed, controls.model, controls.compare, controls.temperature, controls.tokens, before]
    heads = [parts.first.about, parts.second.about, parts.second.column]
    outputs = [*heads, controls.temperature, controls.tokens, before, controls.compare, parts.difference]
    asked = [controls.system, controls.temperature, controls.top_p, controls.tokens, controls.seed, controls.colour]
    opened = page.load(
        names,
        [parts.kept, parts.kept_settings],
        [controls.model, controls.compare, listed, parts.first.status, *asked, before],
        **layout.QUIET,
    )
    opened.then(followed, inputs, outputs, **layout.QUIET)
    chosen = gr.on([controls.model.input, controls.compare.input], followed, inputs, outputs, **layout.QUIET)
    keeping.connect_settings(parts, before, chosen)
    return listed


def others(rows: Sequence[Listed], chosen: str | None, other: str) -> Any:
    """The chooser of the second model: every one but that which is chosen as the first."""
    names = [row.name for row in rows if row.name != chosen]
    choices = [("none", layout.NONE), *((name, name) for name in names)]
    return gr.update(choices=choices, value=other if other in names else layout.NONE)


def one_line(error: ServeError) -> str:
    """An error where there is room for a line."""
    return f"{error.what}: {error.fix}"


def limited(tokens: float, chosen: Sequence[Listed]) -> Any:
    """Max tokens, at most what every chosen model has room for. A context is also for the question: so the page does
    not begin with more than half of it."""
    contexts = [row.max_model_len for row in chosen if row.max_model_len]
    if not contexts:
        return gr.update(maximum=layout.MOST)
    room = min(contexts) // layout.STEP * layout.STEP
    most = max(2 * layout.FEWEST, min(layout.MOST, room - layout.STEP))
    return gr.update(maximum=most, value=tokens if tokens <= most else max(layout.FEWEST, room // 2))
