"""The chat page: Gradio over `client`, for any OpenAI-compatible URL.

One page, no telemetry, nothing from outside this machine. Errors stay in the conversation, and the page stays
usable. It knows nothing about how the engine was started.
"""

import contextlib
import html
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import Any

from hubplugin.errors import ServeError
from serve import client, foreground, ports

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, so before that
try:
    import gradio as gr
    from starlette.datastructures import MutableHeaders
    from starlette.middleware import Middleware
except ImportError as missing:
    raise ServeError("gradio", "the chat page's library is not installed", "pip install 'hubplugin[ui]'") from missing

Message = dict[str, Any]  # role, content, and metadata where it is an error

REDRAW = 0.05  # seconds between two updates of the page; every one of them carries the whole conversation
FAILURE = "failure"  # marks a message of ours among the model's

# An answer is markdown from a model: it may not fetch an image, a font or a script from anywhere else.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'"
)

CSS = """
.gradio-container {width: 100% !important; max-width: 1080px !important; margin: 0 auto !important}
footer {display: none !important}
#head {padding: 0 2px}
#head .html-container {display: flex; flex-wrap: wrap; align-items: baseline; column-gap: .75rem; padding: 0}
#head h1 {font-size: 1.2rem; font-weight: 650; letter-spacing: -.01em; margin: 0}
#head span {color: var(--body-text-color-subdued); font-size: .85rem}
#head + .row {column-gap: 32px}
#main > * {flex-grow: 0 !important}
#main > #chat {flex-grow: 1 !important; border-radius: 12px; min-height: 300px}
#chat button[aria-label="Clear"], #chat .icon-button-wrapper.top-panel {display: none}
#chat .message {font-size: .95rem; line-height: 1.55; border-radius: 12px; border: none; box-shadow: none}
#chat .user.message {padding: 7px 14px}
#chat .bot.message {background: transparent; padding: 0}
#chat .message-buttons {opacity: .45}
#chat .message-buttons * {border: none; box-shadow: none; background: transparent}
#chat .message-buttons:hover {opacity: 1}
#chat .failure {border-left: 3px solid #ef4444; padding: 2px 0 2px 12px; color: var(--body-text-color)}
#chat .failure b {color: #ef4444; font-weight: 600}
#chat .failure small {color: var(--body-text-color-subdued); font-size: .85rem}
#status {min-height: 1.5rem; padding: 0 4px}
#status p {color: var(--body-text-color-subdued); font-size: .85rem; margin: 0}
#status p {font-variant-numeric: tabular-nums}
#status strong {color: var(--body-text-color); font-weight: 600}
#box {border-radius: 12px; padding: 8px 8px 8px 12px}
#box textarea {background: transparent; border: none; box-shadow: none; padding: 6px 2px}
#box .submit-button, #box .stop-button {border-radius: 8px; padding: 4px 16px; font-weight: 550}
#box .submit-button {background: var(--color-accent); color: white}
#settings > *, #settings .form > * {flex-grow: 0 !important}
#settings .form {border: none; box-shadow: none; background: transparent; gap: 22px}
#settings .block {border: none; box-shadow: none; background: transparent; padding: 0}
#settings input.border-none {padding-right: 22px; text-overflow: ellipsis}
#settings button#clear {font-size: .9rem; font-weight: 500; margin-top: 6px}
"""


def build(base_url: str, model: str | None = None, *, api_key: str | None = None) -> gr.Blocks:
    """The page for one server; `model` is chosen first where the server has it. Asks it only when opened."""
    url = client.endpoint(base_url)
    with gr.Blocks(title="hubplugin chat", analytics_enabled=False, fill_height=True) as page:
        gr.HTML(f"<h1>hubplugin chat</h1><span>{html.escape(url)}</span>", elem_id="head")
        with gr.Row(equal_height=True, scale=1):
            with gr.Column(scale=4, min_width=420, elem_id="main"):
                chat = gr.Chatbot(
                    elem_id="chat",
                    show_label=False,
                    container=False,
                    buttons=["copy"],
                    feedback_options=None,
                    allow_tags=False,
                    reasoning_tags=[("<think>", "</think>")],
                    placeholder="Ask something.",
                    scale=1,
                )
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
            with gr.Column(scale=1, min_width=260, elem_id="settings"):
                chosen = gr.Dropdown([], label="Model", elem_id="model", interactive=True)
                system = gr.Textbox(label="System prompt", elem_id="system", lines=3, max_lines=8)
                temperature = gr.Slider(0, 2, 0.7, step=0.05, label="Temperature", elem_id="temperature")
                tokens = gr.Slider(16, 4096, 512, step=16, label="Max tokens", elem_id="tokens")
                clear = gr.Button("Clear conversation", elem_id="clear", size="sm")

        async def answer(
            text: str, messages: list[Message], name: str | None, system: str, temperature: float, tokens: int
        ) -> AsyncIterator[tuple[Any, Any, Any]]:
            if not text.strip():
                yield gr.skip(), gr.skip(), gr.skip()
                return
            sent = _history(messages, system, text)
            shown = [*messages, {"role": "user", "content": text}]
            yield _answering(), shown, "answering …"
            async for grown, line in _answer(url, name, sent, shown, temperature, tokens, api_key):
                yield gr.skip(), grown, line
            yield _waiting(), gr.skip(), gr.skip()

        def names() -> tuple[Any, str]:
            try:
                found = client.models(url, api_key=api_key)
            except ServeError as error:
                return gr.skip(), _one_line(error)
            return gr.update(choices=found, value=model if model in found else next(iter(found), None)), ""

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked = box.submit(
            answer,
            [box, chat, chosen, system, temperature, tokens],
            [box, chat, status],
            concurrency_limit=32,
            **quiet,
        )
        box.stop(lambda: (_waiting(), "stopped"), None, [box, status], cancels=[asked], queue=False, **quiet)
        clear.click(lambda: (_waiting(), [], ""), None, [box, chat, status], cancels=[asked], queue=False, **quiet)
        page.load(names, None, [chosen, status], **quiet)
    return page


async def _answer(
    url: str,
    name: str | None,
    sent: list[dict[str, str]],
    shown: list[Message],
    temperature: float,
    tokens: int,
    api_key: str | None,
) -> AsyncIterator[tuple[list[Message], str]]:
    """The conversation as it grows, and the line under it."""
    text, drawn = "", 0.0
    try:
        if not name:
            raise ServeError(url, "no model is chosen", "reload the page once the engine is running")
        pieces = client.astream(url, name, sent, temperature=temperature, max_tokens=int(tokens), api_key=api_key)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                text += piece.text
                if piece.finish:
                    yield [*shown, _said(text)], _measures(piece)
                elif time.monotonic() - drawn >= REDRAW:
                    drawn = time.monotonic()
                    yield [*shown, _said(text)], "answering …"
    except ServeError as error:
        answered = [*shown, _said(text)] if text else shown
        yield [*answered, _failure(error, "The answer was cut" if text else "No answer")], ""


def _failure(error: ServeError, title: str) -> Message:
    """The error as a message that stays in the conversation, marked so that the model is never sent it."""
    what, fix = html.escape(error.what), html.escape(error.fix)
    content = f'<div class="failure"><b>{title}:</b> {what}<br><small>{fix}</small></div>'
    return {"role": "assistant", "content": content, "metadata": {"id": FAILURE}}


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _answering() -> Any:
    return gr.update(value="", submit_btn=False, stop_btn="Stop")


def _waiting() -> Any:
    return gr.update(submit_btn="Send", stop_btn=False)


def _history(messages: Iterable[Message], system: str, text: str) -> list[dict[str, str]]:
    """What the server is sent: the turns that were answered, then the new question.

    Errors are ours, not the model's; and a question that got no answer would leave two user turns in a row,
    which many chat templates refuse.
    """
    turns: list[dict[str, str]] = []
    for message in [*messages, {"role": "user", "content": text}]:
        if (message.get("metadata") or {}).get("id") == FAILURE:
            continue
        if turns and turns[-1]["role"] == message["role"]:
            turns.pop()
        turns.append({"role": message["role"], "content": _plain(message["content"])})
    return [{"role": "system", "content": system.strip()}, *turns] if system.strip() else turns


def _plain(content: Any) -> str:
    """Gradio hands a message back as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def _measures(last: client.Piece) -> str:
    parts = [] if last.tokens is None else [f"{last.tokens} tokens"]
    parts += [] if last.seconds is None else [f"{last.seconds:.1f} s"]
    parts += [] if last.tokens_per_second is None else [f"**{last.tokens_per_second:.1f} tokens/s**"]
    parts += ["cut at max tokens"] if last.finish == "length" else []
    return " · ".join(parts)


def _one_line(error: ServeError) -> str:
    return f"{error.what}: {error.fix}"


@dataclass
class Page:
    """A page that is being served at `url`."""

    url: str
    blocks: gr.Blocks

    def __enter__(self) -> "Page":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving the page."""
        self.blocks.close(verbose=False)


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
    client.models(base_url, api_key=api_key)
    port = ports.choose(host, port)
    # Gradio looks at its own page once; a proxy from the environment would be in between.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), ports.LOOPBACK, "localhost"]))
    page = build(base_url, model, api_key=api_key)
    page.queue(max_size=64)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            max_file_size=1,  # bytes: nothing is ever uploaded
            app_kwargs={"middleware": [Middleware(_Headers)], "docs_url": None, "redoc_url": None},
            theme=_theme(),
            css=CSS,
        )
    except OSError as error:
        raise ServeError(f"{host}:{port}", "the page's port was taken", "choose another with --port") from error
    return Page(ports.url(host, port), page)


def run_forever(base_url: str, *, ready: Callable[[Page], None], **options: Any) -> int:
    """Serve the page in the foreground until SIGINT (returns 130) or SIGTERM (returns 0); main thread only.

    `ready` is called once with the page; `options` are those of `launch`. Raises what `launch` raises.
    """
    with foreground.interruptible() as caught:
        try:
            with launch(base_url, **options) as page:
                ready(page)
                Event().wait()
        except KeyboardInterrupt:
            pass
    return foreground.exit_code(caught)


class _Headers:
    """Adds the content policy to every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, guarded)


def _theme() -> Any:
    """Quiet greys, one accent, and the fonts the reader's system has."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
