"""The chat page: Gradio over `client`, for any OpenAI-compatible URL.

One page, no telemetry, nothing from outside this machine. Errors stay in the conversation, and the page stays
usable. It knows nothing about how the engine was started.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from hubplugin.errors import ServeError
from serve import client, page_login, page_server, ports
from serve.chat_page import conversation
from serve.page_server import Page as Page

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, so before that
try:
    import gradio as gr
    from starlette.middleware import Middleware

    from serve.chat_page import asking, keeping, layout, listing, style
    from serve.chat_page.markup import tokens
    from serve.chat_page.policy import PolicyHeaders
    from serve.chat_page.tabs import benching, comparing
    from serve.chat_page.tabs import style as tabs_style
    from serve.chat_page.turns import turn
    from serve.chat_page.turns.side import Settings, Side
except ImportError as missing:
    raise ServeError("gradio", "the chat page's library is not installed", "pip install 'hubplugin[ui]'") from missing

ASK_TOKENS = 96


def build(base_url: str, model: str | None = None, *, api_key: str | None = None) -> gr.Blocks:
    """The page for one server; `model` is chosen first where the server has it. Asks it only when opened."""
    url = client.endpoint(base_url)
    with gr.Blocks(title="hubplugin chat", analytics_enabled=False, fill_height=True) as page:
        layout.head(url)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", elem_id="chat-tab", scale=1):
                parts = layout.make(url)
            comparing.tab(base_url, model, api_key)
            benching.tab(base_url, model, api_key)
        listed = listing.connect(page, parts, base_url, model, api_key)
        keeping.connect(page, parts, listed, asking.connect(parts, listed, base_url, api_key))
        page.load(None, js=conversation.COPY_AS_SAID)
        page.load(None, js=tokens.KEYS)

        async def ask(text: str) -> str:
            return await _one_answer(base_url, api_key, model, text)

        gr.api(ask, api_name="ask")
    return page


async def _one_answer(base_url: str, api_key: str | None, model: str | None, text: str) -> str:
    """The page's own turn without the page: the first model's answer to one question, or the error's one line."""
    name = next(iter(client.models(base_url, api_key=api_key, known=model)), None)
    side = Side(name, [], [])
    async for _ in turn.answer(base_url, api_key, text, [side], Settings("", 0.0, ASK_TOKENS)):
        pass
    if not side.said and not side.reasoning:
        raise gr.Error(listing.one_line(side.error) if side.error else "no answer", print_exception=False)
    return side.said or side.reasoning


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


def launch(
    base_url: str,
    host: str = ports.LOOPBACK,
    port: int | None = None,
    *,
    model: str | None = None,
    api_key: str | None = None,
    logins: tuple[str, ...] = (),
    unguarded: bool = False,
) -> Page:
    """Serve the page and return; the server behind it is asked first, so that a wrong URL is an error here.

    `api_key` is sent to `base_url` and never to the browser. With `logins`, each user:password, the page is opened
    with one of them; beyond loopback it needs some, or to be `unguarded`. Raises ServeError where it has none, the
    server does not answer or the page's port cannot be bound.
    """
    page_login.refuse_unguarded(host, logins, unguarded=unguarded)
    client.models(base_url, api_key=api_key, known=model)
    page = build(base_url, model, api_key=api_key)
    page.queue(max_size=64)
    url = page_server.launch(
        page,
        host,
        port,
        auth=page_login.check(logins),
        auth_message=page_login.HINT if logins else None,
        middleware=[Middleware(PolicyHeaders), *([Middleware(page_login.LoginLimit)] if logins else [])],
        max_file_size=1,  # bytes: nothing is ever uploaded
        theme=style.theme(),
        css=style.CSS + tabs_style.CSS + tokens.CSS,
    )
    return Page(url, page)


def run_forever(base_url: str, *, ready: Callable[[Page], None], **options: Any) -> int:
    """Serve the page in the foreground until SIGINT (returns 130) or SIGTERM (returns 0); main thread only.

    `ready` is called once with the page; `options` are those of `launch`. Raises what `launch` raises.
    """
    return page_server.run_forever(partial(launch, base_url, **options), ready)
