"""Serves the page: on this machine, or as a Space of Hugging Face.

Knows addresses, headers and signals. Knows no option and no run.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hubplugin.errors import ServeError
from serve import page_server, ports

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, so before that
try:
    from starlette.middleware import Middleware

    from hubplugin.space import page, style
    from hubplugin.space.desk import MOST_PARAMETERS, Desk
    from serve.chat_page.policy import PolicyHeaders
    from serve.chat_page.style import theme
except ImportError as missing:
    raise ServeError("gradio", "the page's library is not installed", "pip install 'hubplugin[ui]'") from missing

WAITING = 32  # visitors in the queue
HUB = "https://huggingface.co https://*.hf.space"  # a Space is shown in a frame of the Hub


@dataclass
class Page(page_server.Page):
    """The page, and what its visitors have running."""

    desk: Desk

    def close(self) -> None:
        """Stop serving the page, end its runs and remove its files."""
        super().close()
        self.desk.close()


def launch(host: str = ports.LOOPBACK, port: int | None = None, *, max_parameters: int = MOST_PARAMETERS) -> Page:
    """Serve the page and return. Raises ServeError where its port cannot be bound.

    This machine's own login is used only where nobody but its owner reaches the page.
    """
    on_space = bool(os.environ.get("SPACE_ID"))
    desk = Desk(own_machine=ports.is_loopback(host) and not on_space, max_parameters=max_parameters)
    blocks = page.build(desk, on_space=on_space)
    blocks.queue(max_size=WAITING)
    policy = Middleware(PolicyHeaders, frames=f"'self' {HUB}") if on_space else Middleware(PolicyHeaders)
    try:
        url = page_server.launch(
            blocks, host, port, middleware=[policy], max_file_size=page.MOST_TEXT, theme=theme(), css=style.CSS
        )
    except ServeError:
        desk.close()
        raise
    return Page(url, blocks, desk)


def run_forever(*, ready: Callable[[Page], None], **options: Any) -> int:
    """Serve the page in the foreground until SIGINT (returns 130) or SIGTERM (returns 0); main thread only.

    `ready` is called once with the page; `options` are those of `launch`. Raises what `launch` raises.
    """
    return page_server.run_forever(partial(launch, **options), ready)


def run_as_space(max_parameters: int) -> int:
    """What app.py of a Space calls: the page at the address that Gradio's variables name, else on this machine."""
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if os.environ.get("SPACE_ID") else ports.LOOPBACK)
    port = int(os.environ.get("GRADIO_SERVER_PORT") or 7860)
    return run_forever(ready=_say, host=host, port=port, max_parameters=max_parameters)


def _say(served: Page) -> None:
    os.write(1, f"{served.url}\n".encode())
