"""What stands on the chat page: one conversation or two beside each other, the box, the settings. Knows Gradio's
components; nothing of what happens when they are used."""

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from serve.chat_page.markup import formulas, tokens

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # of every event
NONE = ""  # the value of "Compare with" when one model is asked
ALONE, COMPARED = 0.7, 0.0  # temperature that the page begins with
FEWEST, MOST, USUAL, STEP = 16, 4096, 512, 16  # tokens of an answer
HOTTEST = 2
LEAST_TOP_P, TOP_P = 0.05, 1.0
COLOURS = {tokens.NOTHING: "nothing", tokens.PROBABILITY: "probability", tokens.KL: "KL to the other model"}
TEMPERATURE = {
    False: "Temperature",
    True: "Temperature (at 0, differences come from the models and not from chance)",
}


@dataclass(frozen=True)
class Conversation:
    """What one model is asked and says."""

    column: gr.Column
    about: gr.HTML
    chat: gr.Chatbot
    turns: gr.State  # what was said, as it was said; the page shows it as HTML
    status: gr.Markdown


@dataclass(frozen=True)
class Controls:
    """How models are asked."""

    model: gr.Dropdown
    compare: gr.Dropdown
    system: gr.Textbox
    temperature: gr.Slider
    tokens: gr.Slider
    seed: gr.Textbox
    top_p: gr.Slider
    colour: gr.Dropdown


@dataclass(frozen=True)
class Actions:
    """What can be done with a conversation."""

    retry: gr.Button
    edit: gr.Button
    markdown: gr.Button
    json: gr.Button
    clear: gr.Button


@dataclass(frozen=True)
class Parts:
    """Everything on the page that something happens to."""

    first: Conversation
    second: Conversation
    difference: gr.HTML
    box: gr.Textbox
    controls: Controls
    actions: Actions
    kept: gr.BrowserState  # the conversations, which outlast a reload
    kept_settings: gr.BrowserState  # apart from them: they change more often and are short
    file: gr.Textbox  # that is being saved; never seen


def head(url: str) -> None:
    """The page's title, above everything."""
    gr.HTML(f"<h1>hubplugin chat</h1><span>{html.escape(url)}</span>", elem_id="head")


def make(url: str) -> Parts:
    """Put everything of the chat on the page that is being built."""
    with gr.Row(equal_height=True, scale=1):
        with gr.Column(scale=4, min_width=320, elem_id="main"):
            with gr.Row(equal_height=True, scale=1, elem_id="talks"):
                first, second = _conversation(""), _conversation("-b", visible=False)
            difference = gr.HTML("", elem_id="difference")
            box = gr.Textbox(
                elem_id="box",
                placeholder="Message",
                show_label=False,
                autofocus=True,
                lines=1,
                max_lines=8,
                submit_btn="Send",
            )
            with gr.Row(elem_id="actions"):
                retry, edit = _small("retry", "Retry"), _small("edit", "Edit last")
                markdown, json = _small("markdown", "Save as Markdown"), _small("json", "Save as JSON")
        with gr.Column(scale=1, min_width=260, elem_id="settings"):
            controls = _controls()
            clear = _small("clear", "Clear conversation")
    # The browser is told the key, so that this hides nothing from who has the browser; Gradio's own changes each start.
    kept, kept_settings = (
        gr.BrowserState(None, storage_key=f"hubplugin {what} {url}", secret="hubplugin-chat-1")
        for what in ("chat", "settings")
    )
    file = gr.Textbox(visible=False)
    actions = Actions(retry, edit, markdown, json, clear)
    return Parts(first, second, difference, box, controls, actions, kept, kept_settings, file)


def _small(name: str, label: str) -> gr.Button:
    return gr.Button(label, elem_id=name, size="sm", min_width=0)


def _conversation(which: str, *, visible: bool = True) -> Conversation:
    """HTML, which Gradio's markdown and sanitizer pass on, with formulas that it typesets."""
    with gr.Column(min_width=300, elem_id=f"talk{which}", elem_classes="talk", visible=visible) as column:
        about = gr.HTML("", elem_id=f"about{which}", elem_classes="about")
        chat = gr.Chatbot(
            elem_id=f"chat{which}",
            elem_classes="said",
            show_label=False,
            container=False,
            buttons=["copy"],
            feedback_options=None,
            latex_delimiters=formulas.LATEX_DELIMITERS,
            placeholder="Ask something.",
            scale=1,
        )
        status = gr.Markdown("", elem_id=f"status{which}", elem_classes="status")
    return Conversation(column, about, chat, gr.State([]), status)


def _controls() -> Controls:
    return Controls(
        model=gr.Dropdown([], label="Model", elem_id="model", interactive=True),
        compare=gr.Dropdown([("none", NONE)], value=NONE, label="Compare with", elem_id="compare", interactive=True),
        system=gr.Textbox(label="System prompt", elem_id="system", lines=2, max_lines=8),
        temperature=gr.Slider(0, HOTTEST, ALONE, step=0.05, label=TEMPERATURE[False], elem_id="temperature"),
        tokens=gr.Slider(FEWEST, MOST, USUAL, step=STEP, label="Max tokens", elem_id="tokens"),
        # No gr.Number: one without a value says 0.
        seed=gr.Textbox(label="Seed", elem_id="seed", placeholder="a new one for each question", max_lines=1),
        top_p=gr.Slider(LEAST_TOP_P, TOP_P, TOP_P, step=0.05, label="Top-p (at 1, the server's own)", elem_id="top-p"),
        # No gr.Radio: it gives each button a name of its own, so that no arrow key goes from one to the next.
        colour=gr.Dropdown(
            [(label, value) for value, label in COLOURS.items()],
            value=tokens.NOTHING,
            label="Colour tokens by",
            filterable=False,
            interactive=True,
            elem_id="colour",
        ),
    )
