"""Serves the page: on this machine, or as a Space of Hugging Face.

Knows addresses, headers and signals. Knows no option and no run.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import Any

from hubplugin.errors import ServeError
from serve import ports, signals

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, so before that
try:
    import gradio as gr
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
class Page:
    """A page that is being served at `url`."""

    url: str
    blocks: gr.Blocks
    desk: Desk

    def __enter__(self) -> "Page":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving the page, end its runs and remove its files."""
        self.blocks.close(verbose=False)
        self.desk.close()


def launch(host: str = ports.LOOPBACK, port: int | None = None, *, max_parameters: int = MOST_PARAMETERS) -> Page:
    """Serve the page and return. Raises ServeError where its port cannot be bound.

    This machine's own login is used only where nobody but its owner reaches the page.
    """
    on_space = bool(os.environ.get("SPACE_ID"))
    port = ports.choose(host, port)
    # Gradio looks at its own page once; a proxy from the environment would be in between.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), ports.LOOPBACK, "localhost"]))
    desk = Desk(own_machine=ports.is_loopback(host) and not on_space, max_parameters=max_parameters)
    blocks = page.build(desk, on_space=on_space)
    blocks.queue(max_size=WAITING)
    policy = Middleware(PolicyHeaders, frames=f"'self' {HUB}") if on_space else Middleware(PolicyHeaders)
    try:
        blocks.launch(
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
            max_file_size=page.MOST_TEXT,
            app_kwargs={"middleware": [policy], "docs_url": None, "redoc_url": None},
            theme=theme(),
            css=style.CSS,
        )
    except OSError as error:
        desk.close()
        raise ServeError(f"{host}:{port}", "the page's port was taken", "choose another with --port") from error
    return Page(ports.url(host, port), blocks, desk)


def run_forever(*, ready: Callable[[Page], None], **options: Any) -> int:
    """Serve the page in the foreground until SIGINT (returns 130) or SIGTERM (returns 0); main thread only.

    `ready` is called once with the page; `options` are those of `launch`. Raises what `launch` raises.
    """
    with signals.interruptible() as caught:
        try:
            with launch(**options) as served:
                ready(served)
                Event().wait()
        except KeyboardInterrupt:
            pass
    return signals.exit_code(caught)


def run_as_space(max_parameters: int) -> int:
    """What app.py of a Space calls: the page at the address that Gradio's variables name, else on this machine."""
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if os.environ.get("SPACE_ID") else ports.LOOPBACK)
    port = int(os.environ.get("GRADIO_SERVER_PORT") or 7860)
    return run_forever(ready=_say, host=host, port=port, max_parameters=max_parameters)


def _say(served: Page) -> None:
    os.write(1, f"{served.url}\n".encode())
