"""The chat page: Gradio over `client`, for any OpenAI-compatible URL.

One page, no telemetry, nothing from outside this machine. Errors stay in the conversation, and the page stays
usable. It knows nothing about how the engine was started.
"""

import asyncio
import contextlib
import html
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import Any

from hubplugin.errors import ServeError
from serve import client, markdown, ports, signals

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, so before that
try:
    import gradio as gr
    from starlette.middleware import Middleware

    from serve import style
    from serve.policy import PolicyHeaders
except ImportError as missing:
    raise ServeError("gradio", "the chat page's library is not installed", "pip install 'hubplugin[ui]'") from missing

Message = dict[str, Any]  # role, and content as markdown

ASK_TOKENS = 96
EAGER = 8  # pieces at the start of an answer that are drawn at once, so that a slow engine is seen to have begun
REDRAW = 0.05  # seconds between two updates of the page; every one of them carries the whole conversation
SETTLE = 0.3  # seconds after which no piece of a stopped answer is on its way any more


def build(base_url: str, model: str | None = None, *, api_key: str | None = None) -> gr.Blocks:
    """The page for one server; `model` is chosen first where the server has it. Asks it only when opened."""
    url = client.endpoint(base_url)
    with gr.Blocks(title="hubplugin chat", analytics_enabled=False, fill_height=True) as page:
        gr.HTML(f"<h1>hubplugin chat</h1><span>{html.escape(url)}</span>", elem_id="head")
        with gr.Row(equal_height=True, scale=1):
            with gr.Column(scale=4, min_width=420, elem_id="main"):
                turns = gr.State([])  # what was said, as it was said; the page shows it as markdown
                chat = gr.Chatbot(
                    elem_id="chat",
                    show_label=False,
                    container=False,
                    buttons=["copy"],
                    feedback_options=None,
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
            chosen, system, temperature, tokens, clear = _settings()

        async def answer(*inputs: Any) -> AsyncIterator[tuple[Any, ...]]:
            async for update in _turn(url, api_key, *inputs):
                yield update

        def names() -> tuple[Any, str]:
            try:
                served = client.models(url, api_key=api_key)
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
        stopped = box.stop(lambda: (_waiting(), "stopped"), None, [box, status], cancels=[asked], queue=False, **quiet)
        stopped.then(_still_stopped, None, status, queue=False, **quiet)
        everything = [box, chat, turns, status]
        clear.click(lambda: (_waiting(), [], [], ""), None, everything, cancels=[asked], queue=False, **quiet)
        page.load(names, None, [chosen, status], **quiet)

        async def ask(text: str) -> str:
            return await _one_answer(url, api_key, text)

        gr.api(ask, api_name="ask")
    return page


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


async def _one_answer(url: str, api_key: str | None, text: str) -> str:
    """The page's own turn without the page: the first model's answer to one question, or the error's one line."""
    turns: list[dict[str, str]] = []
    name = next(iter(client.models(url, api_key=api_key)), None)
    line = ""
    async for _, _, said, now in _turn(url, api_key, text, [], [], name, "", 0.0, ASK_TOKENS):
        turns = said if isinstance(said, list) else turns
        line = now if isinstance(now, str) else line
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
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


async def _turn(
    url: str,
    api_key: str | None,
    text: str,
    chat: list[Message],
    turns: list[dict[str, str]],
    name: str | None,
    system: str,
    temperature: float,
    tokens: int,
) -> AsyncIterator[tuple[Any, ...]]:
    """One question and its answer as it grows: updates of the box, the page, the turns and the line under them."""
    if not text.strip():
        yield (gr.skip(),) * 4
        return
    # A question that got no answer would leave two user turns in a row, which many chat templates refuse.
    turns = [*(turns[:-1] if turns and turns[-1]["role"] == "user" else turns), {"role": "user", "content": text}]
    sent = [{"role": "system", "content": system.strip()}, *turns] if system.strip() else turns
    chat = [*chat, _message("user", text)]
    yield gr.update(value="", submit_btn=False, stop_btn="Stop"), chat, turns, "answering …"
    said, drawn, count = "", 0.0, 0

    def grown(line: str) -> tuple[Any, ...]:
        return gr.skip(), [*chat, _message("assistant", said)], [*turns, {"role": "assistant", "content": said}], line

    try:
        if not name:
            raise ServeError(url, "no model is chosen", "reload the page once the engine is running")
        pieces = client.astream(url, name, sent, temperature=temperature, max_tokens=int(tokens), api_key=api_key)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                said += piece.text
                count += 1
                if piece.finish:
                    yield grown(_measures(piece))
                elif count <= EAGER or time.monotonic() - drawn >= REDRAW:
                    drawn = time.monotonic()
                    yield grown("answering …")
    except ServeError as error:
        if said:
            yield grown("")
            chat = [*chat, _message("assistant", said)]
        yield gr.skip(), [*chat, _failure(error, "The answer was cut" if said else "No answer")], gr.skip(), ""
    yield _waiting(), gr.skip(), gr.skip(), gr.skip()


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": markdown.literal(text)}


def _failure(error: ServeError, title: str) -> Message:
    """The error as a message that stays on the page; the model is never sent it."""
    what, fix = html.escape(error.what), html.escape(error.fix)
    content = f'<div class="failure"><b>{title}:</b> {what}<br><small>{fix}</small></div>'
    return {"role": "assistant", "content": content}


async def _still_stopped() -> str:
    """The status once more: a last piece of the answer may have been on its way and have overwritten it."""
    await asyncio.sleep(SETTLE)
    return "stopped"


def _waiting() -> Any:
    return gr.update(submit_btn="Send", stop_btn=False)


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
            app_kwargs={"middleware": [Middleware(PolicyHeaders)], "docs_url": None, "redoc_url": None},
            theme=style.theme(),
            css=style.CSS,
        )
    except OSError as error:
        raise ServeError(f"{host}:{port}", "the page's port was taken", "choose another with --port") from error
    return Page(ports.url(host, port), page)


def run_forever(base_url: str, *, ready: Callable[[Page], None], **options: Any) -> int:
    """Serve the page in the foreground until SIGINT (returns 130) or SIGTERM (returns 0); main thread only.

    `ready` is called once with the page; `options` are those of `launch`. Raises what `launch` raises.
    """
    with signals.interruptible() as caught:
        try:
            with launch(base_url, **options) as page:
                ready(page)
                Event().wait()
        except KeyboardInterrupt:
            pass
    return signals.exit_code(caught)
