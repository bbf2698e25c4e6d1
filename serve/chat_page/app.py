"""The chat page: Gradio over `client`, for any OpenAI-compatible URL.

One page, no telemetry, nothing from outside this machine. Errors stay in the conversation, and the page stays
usable. It knows nothing about how the engine was started.
"""

import asyncio
import html
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from hubplugin.errors import ServeError
from serve import client, page_server, ports
from serve.chat_page import conversation, formulas
from serve.page_server import Page as Page

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, so before that
try:
    import gradio as gr
    from starlette.middleware import Middleware

    from serve.chat_page import style, turn
    from serve.chat_page.policy import PolicyHeaders
except ImportError as missing:
    raise ServeError("gradio", "the chat page's library is not installed", "pip install 'hubplugin[ui]'") from missing

ASK_TOKENS = 96
SETTLE = 0.3  # seconds after which no piece of a stopped answer is on its way any more


def build(base_url: str, model: str | None = None, *, api_key: str | None = None) -> gr.Blocks:
    """The page for one server; `model` is chosen first where the server has it. Asks it only when opened."""
    url = client.endpoint(base_url)
    with gr.Blocks(title="hubplugin chat", analytics_enabled=False, fill_height=True) as page:
        gr.HTML(f"<h1>hubplugin chat</h1><span>{html.escape(url)}</span>", elem_id="head")
        with gr.Row(equal_height=True, scale=1):
            with gr.Column(scale=4, min_width=420, elem_id="main"):
                turns = gr.State([])  # what was said, as it was said; the page shows it as HTML
                chat = _conversation()
                status = gr.Markdown("", elem_id="status")
                box = gr.Textbox(
                    elem_id="box",
                    placeholder="Message",
                    show_label=False,
                    autofocus=True,
                    lines=1,
                    max_lines=8,
                    submit_btn="Send",
                )
            chosen, system, temperature, tokens, clear = _settings()

        async def answer(*inputs: Any) -> AsyncIterator[tuple[Any, ...]]:
            async for update in turn.answer(base_url, api_key, *inputs):
                yield update

        def names() -> tuple[Any, str]:
            try:
                served = client.models(base_url, api_key=api_key, known=model)
            except ServeError as error:
                return gr.skip(), _one_line(error)
            return gr.update(choices=served, value=model if model in served else next(iter(served), None)), ""

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked = box.submit(
            answer,
            [box, chat, turns, chosen, system, temperature, tokens],
            [box, chat, turns, status],
            concurrency_limit=32,
            **quiet,
        )
        stop = {"cancels": [asked], "queue": False, **quiet}
        stopped = box.stop(lambda: (turn.waiting(), "stopped"), None, [box, status], **stop)
        stopped.then(_still_stopped, [chat, turns], [chat, status], queue=False, **quiet)
        everything = [box, chat, turns, status]
        clear.click(lambda: (turn.waiting(), [], [], ""), None, everything, **stop)
        page.load(names, None, [chosen, status], **quiet)
        page.load(None, js=conversation.COPY_AS_SAID)

        async def ask(text: str) -> str:
            return await _one_answer(base_url, api_key, model, text)

        gr.api(ask, api_name="ask")
    return page


def _conversation() -> gr.Chatbot:
    """What was said: HTML, which Gradio's markdown and sanitizer pass on, with formulas that it typesets."""
    return gr.Chatbot(
        elem_id="chat",
        show_label=False,
        container=False,
        buttons=["copy"],
        feedback_options=None,
        latex_delimiters=formulas.LATEX_DELIMITERS,
        placeholder="Ask something.",
        scale=1,
    )


def _settings() -> tuple[gr.Dropdown, gr.Textbox, gr.Slider, gr.Slider, gr.Button]:
    """The column beside the conversation: model, system prompt, temperature, max tokens, clear."""
    with gr.Column(scale=1, min_width=260, elem_id="settings"):
        return (
            gr.Dropdown([], label="Model", elem_id="model", interactive=True),
            gr.Textbox(label="System prompt", elem_id="system", lines=3, max_lines=8),
            gr.Slider(0, 2, 0.7, step=0.05, label="Temperature", elem_id="temperature"),
            gr.Slider(16, 4096, 512, step=16, label="Max tokens", elem_id="tokens"),
            gr.Button("Clear conversation", elem_id="clear", size="sm"),
        )


async def _one_answer(base_url: str, api_key: str | None, model: str | None, text: str) -> str:
    """The page's own turn without the page: the first model's answer to one question, or the error's one line."""
    turns: list[conversation.Turn] = []
    name = next(iter(client.models(base_url, api_key=api_key, known=model)), None)
    line = ""
    async for _, _, said, now in turn.answer(base_url, api_key, text, [], [], name, "", 0.0, ASK_TOKENS):
        turns = said if isinstance(said, list) else turns
        line = now if isinstance(now, str) else line
    answers = [each["content"] or each.get("reasoning", "") for each in turns if each["role"] == "assistant"]
    if not answers:
        raise gr.Error(line or "no answer", print_exception=False)
    return answers[0]


def ask(page_url: str, question: str) -> str:
    """Ask a running page over its own API. Returns the answer; raises ServeError where there is none."""
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    try:
        answer = Client(page_url, verbose=False, analytics_enabled=False).predict(question, api_name="/ask")
    except (AppError, OSError, ValueError) as error:
        raise ServeError(page_url, f"the page did not answer: {error}", "look at its own messages") from error
    if not str(answer).strip():
        raise ServeError(page_url, "the page gave an empty answer", "look at its own messages")
    return str(answer)


async def _still_stopped(
    chat: list[conversation.Message], turns: list[conversation.Turn]
) -> tuple[list[conversation.Message], str]:
    """The status once more: a last piece of the answer may have been on its way and have overwritten it."""
    await asyncio.sleep(SETTLE)
    return conversation.finished(chat, turns), "stopped"


def _one_line(error: ServeError) -> str:
    return f"{error.what}: {error.fix}"


def launch(
    base_url: str,
    host: str = ports.LOOPBACK,
    port: int | None = None,
    *,
    model: str | None = None,
    api_key: str | None = None,
) -> Page:
    """Serve the page and return; the server behind it is asked first, so that a wrong URL is an error here.

    `api_key` is sent to `base_url` and never to the browser. Raises ServeError where the server does not
    answer or the page's port cannot be bound.
    """
    client.models(base_url, api_key=api_key, known=model)
    page = build(base_url, model, api_key=api_key)
    page.queue(max_size=64)
    url = page_server.launch(
        page,
        host,
        port,
        middleware=Middleware(PolicyHeaders),
        max_file_size=1,  # bytes: nothing is ever uploaded
        theme=style.theme(),
        css=style.CSS,
    )
    return Page(url, page)


def run_forever(base_url: str, *, ready: Callable[[Page], None], **options: Any) -> int:
    """Serve the page in the foreground until SIGINT (returns 130) or SIGTERM (returns 0); main thread only.

    `ready` is called once with the page; `options` are those of `launch`. Raises what `launch` raises.
    """
    return page_server.run_forever(partial(launch, base_url, **options), ready)
