"""Serves a page that Gradio has built, in the background or until a signal, with the settings that all pages here have.

Knows addresses, signals and Gradio's way to launch. Imports no Gradio, and knows no page.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import Any, Self, TypeVar

from hubplugin.errors import ServeError
from serve import ports, signals


@dataclass
class Page:
    """A page that is being served at `url`."""

    url: str
    blocks: Any  # gradio.Blocks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving the page."""
        self.blocks.close(verbose=False)


P = TypeVar("P", bound=Page)


def launch(blocks: Any, host: str, port: int | None, *, middleware: Sequence[Any], **options: Any) -> str:
    """Serve a page in the background; returns its URL. `options` are Gradio's, such as `css`.

    `middleware` is Starlette's, the outermost first. Raises ServeError where its port cannot be bound.
    """
    port = ports.choose(host, port)
    # Gradio looks at its own page once; a proxy from the environment would be in between.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), ports.LOOPBACK, "localhost"]))
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
            app_kwargs={"middleware": [*middleware], "docs_url": None, "redoc_url": None},
            **options,
        )
    except OSError as error:
        raise ServeError(f"{host}:{port}", "the page's port was taken", "choose another with --port") from error
    return ports.url(host, port)


def run_forever(launched: Callable[[], P], ready: Callable[[P], None]) -> int:
    """Serve a page in the foreground until SIGINT (returns 130) or SIGTERM (returns 0); main thread only.

    `ready` is called once with the page. Raises what `launched` raises.
    """
    with signals.interruptible() as caught:
        try:
            with launched() as page:
                ready(page)
                Event().wait()
        except KeyboardInterrupt:
            pass
    return signals.exit_code(caught)
