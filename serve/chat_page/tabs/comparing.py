"""The tab Compare: what `comparison` makes of the server's list, asked for whenever the tab is opened."""

import gradio as gr

from hubplugin.errors import ServeError
from serve import client
from serve.chat_page import layout
from serve.chat_page.tabs import comparison, notes, tables

ASKING = notes.note("Asking the server for its models …")


def tab(base_url: str, model: str | None, api_key: str | None) -> None:
    """Put the tab on the page that is being built."""

    def listed() -> str:
        try:
            rows = client.catalogue(base_url, api_key=api_key, known=model)
        except ServeError as error:
            return notes.failure(error)
        return comparison.shown(rows)

    with gr.Tab("Compare", elem_id="compare-tab", scale=1) as opened:
        shown = gr.HTML(ASKING, elem_id="comparison", elem_classes="tab", js_on_load=tables.SORT)
    opened.select(listed, None, shown, concurrency_limit=8, **layout.QUIET)
