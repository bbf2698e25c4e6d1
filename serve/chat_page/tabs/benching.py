"""The tab Bench: a load is chosen, started, seen and stopped. Knows Gradio's components, `load` and `timings`.

One load at a time on this page's server, whoever started it: two at once would time each other.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from hubplugin.errors import ServeError
from serve import client
from serve.chat_page import layout
from serve.chat_page.tabs import load, notes, timings
from serve.chat_page.tabs.load import Load, Plan

ABOUT = notes.note(
    f"Every stream asks the model {load.ANSWERS} questions, one after the other, at temperature 0. Times are by this"
    " page's clock: what others ask of the engine meanwhile is in them."
)
TAKEN = ServeError(
    "bench", "another bench is running on this page's server", "start yours when it is over: two would time each other"
)
# Gradio's group of boxes has a name that is seen, and none that is read out.
NAMED = """() => {document.querySelector("#bench-streams")?.setAttribute("aria-label", "Streams at once")}"""
USUAL_STREAMS, USUAL_TOKENS = [1, 2, 4], 32


@dataclass
class Desk:
    """Where the load that runs is known, and whose it is."""

    running: Load | None = None
    session: str | None = None

    @contextlib.contextmanager
    def taken(self, running: Load, session: str | None) -> Any:
        """Hold the place while a load runs. Raises ServeError where another one does."""
        if self.running is not None:
            raise TAKEN
        self.running, self.session = running, session
        try:
            yield
        finally:
            self.running = self.session = None

    def stop(self, session: str | None) -> None:
        """Stop the load, where it is this session's."""
        if self.running is not None and self.session == session:
            self.running.stop()


@dataclass(frozen=True)
class Parts:
    """What stands on the tab."""

    name: gr.Dropdown
    streams: gr.CheckboxGroup
    tokens: gr.Slider
    start: gr.Button
    stop: gr.Button
    progress: gr.HTML
    results: gr.HTML


def tab(base_url: str, model: str | None, api_key: str | None) -> None:
    """Put the tab on the page that is being built, and let it do what it says."""
    desk = Desk()

    def names(chosen: str | None) -> tuple[Any, Any]:
        try:
            served = client.models(base_url, api_key=api_key, known=model)
        except ServeError as error:
            return gr.skip(), notes.failure(error)
        wanted = next((name for name in (chosen, model, *served) if name in served), None)
        return gr.update(choices=served, value=wanted), gr.skip()

    async def begin(
        name: str | None, streams: list[int], tokens: float, request: gr.Request
    ) -> AsyncIterator[tuple[Any, Any]]:
        if desk.running is not None and desk.session == request.session_hash:
            yield gr.skip(), gr.skip()  # it is running: the button stays where the keyboard is
            return
        try:
            plan = Plan(name or "", tuple(sorted(streams)), int(tokens))
            run = Load(base_url, api_key, plan)
            with desk.taken(run, request.session_hash):
                async with contextlib.aclosing(run.run()) as progress:
                    async for at in progress:
                        shown = timings.results(plan.name, plan.tokens, at.rounds)
                        yield timings.progress(plan.name, at), shown
        except ServeError as error:
            yield notes.failure(error), gr.skip()

    async def end(request: gr.Request) -> None:
        desk.stop(request.session_hash)

    with gr.Tab("Bench", elem_id="bench-tab", scale=1) as opened:
        parts = _parts()
    chosen = opened.select(names, parts.name, [parts.name, parts.progress], concurrency_limit=8, **layout.QUIET)
    chosen.then(None, None, None, js=NAMED, **layout.QUIET)
    parts.start.click(
        begin,
        [parts.name, parts.streams, parts.tokens],
        [parts.progress, parts.results],
        concurrency_limit=32,  # others are told at once that one is running
        **layout.QUIET,
    )
    parts.stop.click(end, None, None, queue=False, **layout.QUIET)


def _parts() -> Parts:
    gr.HTML(ABOUT, elem_classes="tab")
    with gr.Row(elem_id="bench"):
        name = gr.Dropdown([], label="Model to time", elem_id="bench-model", interactive=True)
        choices = [(str(streams), streams) for streams in load.STREAMS]
        streams = gr.CheckboxGroup(choices, value=USUAL_STREAMS, label="Streams at once", elem_id="bench-streams")
        tokens = gr.Slider(
            load.FEWEST_TOKENS,
            load.MOST_TOKENS,
            USUAL_TOKENS,
            step=8,
            label="Tokens per answer",
            elem_id="bench-tokens",
        )
    with gr.Row(elem_id="bench-buttons"):
        start = gr.Button("Start bench", elem_id="bench-start", variant="primary", size="md", min_width=0)
        stop = gr.Button("Stop bench", elem_id="bench-stop", size="md", min_width=0)
    progress = gr.HTML('<div role="status"></div>', elem_id="bench-progress", elem_classes="tab")
    results = gr.HTML("", elem_id="bench-results", elem_classes="tab")
    return Parts(name, streams, tokens, start, stop, progress, results)
