"""The choosers of models, what is known of the chosen, and the settings that follow from it.

Knows the page's parts and `client`'s list of models; nothing of questions and answers.
"""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from hubplugin.errors import ServeError
from serve import client
from serve.catalogue import Listed
from serve.chat_page import about, layout

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def connect(page: gr.Blocks, parts: layout.Parts, base_url: str, model: str | None, api_key: str | None) -> None:
    """Ask for the models whenever the page is opened, and follow what is chosen."""
    controls = parts.controls
    listed = gr.State([])
    before = gr.State(None)  # the temperature of one model, while two are compared

    def names() -> tuple[Any, Any, list[Listed], str]:
        try:
            rows = client.catalogue(base_url, api_key=api_key, known=model)
        except ServeError as error:
            return gr.skip(), gr.skip(), [], one_line(error)
        served = [row.name for row in rows]
        chosen = model if model in served else next(iter(served), None)
        others = [("none", layout.NONE), *((name, name) for name in served)]
        return gr.update(choices=served, value=chosen), gr.update(choices=others, value=layout.NONE), rows, ""

    def followed(
        rows: list[Listed], chosen: str | None, other: str, temperature: float, tokens: float, alone: float | None
    ) -> tuple[Any, ...]:
        two, value = bool(other), {}  # without a value the slider stays: Gradio tells of a choice more than once
        if two and alone is None:
            alone, value = temperature, {"value": layout.COMPARED}
        elif not two and alone is not None:
            alone, value = None, {"value": alone}
        return (
            about.head(chosen, rows, always=two),
            about.head(other, rows, always=two),
            gr.update(visible=two),
            gr.update(label=layout.TEMPERATURE[two], **value),
            _limited(tokens, [row for row in rows if row.name in (chosen, other)]),
            alone,
            "",
        )

    inputs = [listed, controls.model, controls.compare, controls.temperature, controls.tokens, before]
    heads = [parts.first.about, parts.second.about, parts.second.column]
    outputs = [*heads, controls.temperature, controls.tokens, before, parts.difference]
    opened = page.load(names, None, [controls.model, controls.compare, listed, parts.first.status], **QUIET)
    opened.then(followed, inputs, outputs, **QUIET)
    gr.on([controls.model.input, controls.compare.input], followed, inputs, outputs, **QUIET)


def one_line(error: ServeError) -> str:
    """An error where there is room for a line."""
    return f"{error.what}: {error.fix}"


def _limited(tokens: float, chosen: Sequence[Listed]) -> Any:
    """Max tokens, at most what every chosen model has room for. A context is also for the question: so the page does
    not begin with more than half of it."""
    contexts = [row.max_model_len for row in chosen if row.max_model_len]
    if not contexts:
        return gr.update(maximum=layout.MOST)
    room = min(contexts) // layout.STEP * layout.STEP
    most = max(2 * layout.FEWEST, min(layout.MOST, room - layout.STEP))
    return gr.update(maximum=most, value=tokens if tokens <= most else max(layout.FEWEST, room // 2))
