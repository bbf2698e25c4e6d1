"""The verbs that serve a chat page, a page that compresses, a Hub, and all of it as a demo."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hubplugin import interrupt
from hubplugin.api import OUT
from hubplugin.verbs.application import LOOPBACK, Host, Port, app


class DemoModel(StrEnum):
    """What the demo can be of."""

    docs = "docs"
    smollm2 = "smollm2"


@app.command("chat")
def _chat(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="An OpenAI-compatible server, a path is kept, a bare host gets /v1.")
    ] = f"http://{LOOPBACK}:8000",
    model: Annotated[str | None, typer.Option(help="Which of the server's models.", show_default="its first")] = None,
    host: Host = LOOPBACK,
    port: Port = 7860,
    logins: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of user:password, one per line, beside HUBPLUGIN_PAGE_LOGIN."),
    ] = None,
    unguarded: Annotated[bool, typer.Option("--open", help="Beyond loopback without any login.")] = False,
) -> None:
    """A chat page over any OpenAI-compatible URL.

    Prints the page's URL, and ends by ctrl-C. The server's key, where it wants one, is taken from VLLM_API_KEY. With
    HUBPLUGIN_PAGE_LOGIN=user:password in the environment the page asks for that login.

    Example: hubplugin chat http://127.0.0.1:8001
    """
    with interrupt.held():
        from serve import page_login
        from serve.chat_page import app as page

    raise typer.Exit(
        page.run_forever(
            url,
            ready=lambda running: print(running.url, flush=True),
            model=model,
            host=host,
            port=port,
            api_key=os.environ.get("VLLM_API_KEY"),
            logins=page_login.read(logins),
            unguarded=unguarded,
        )
    )


@app.command("space")
def _space(
    write: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the files of a Space to a folder instead.")
    ] = None,
    max_parameters: Annotated[
        int, typer.Option(min=1, help="Refuse models with more parameters than these.")
    ] = 1_000_000_000,
    host: Host = LOOPBACK,
    port: Port = 7860,
) -> None:
    """A page that compresses models of the Hub, measures and publishes them.

    Prints the page's URL, and ends by ctrl-C. With --write it serves nothing: it writes what a Space of Hugging Face
    needs to be the same page, and prints the command that uploads it.

    Example: hubplugin space --max-parameters 500000000
    """
    if write is not None:
        with interrupt.held():
            from hubplugin.space import folder

        print(folder.write(write, max_parameters=max_parameters))
        return
    with interrupt.held():
        from hubplugin.space import app as page

    raise typer.Exit(
        page.run_forever(
            ready=lambda running: print(running.url, flush=True),
            host=host,
            port=port,
            max_parameters=max_parameters,
        )
    )


@app.command("hub")
def _hub(
    root: Annotated[Path, typer.Option(help="Folder of everything it stores.")],
    host: Host = LOOPBACK,
    port: Port = 8765,
) -> None:
    """A small Hub on this machine.

    Ends by ctrl-C. Its token is in the file `token` under its root.

    Example: hubplugin hub --root out/hub
    """
    with interrupt.held():
        from hubplugin import localhub

    localhub.serve(root, host=host, port=port)


@app.command("demo")
def _demo(
    once: Annotated[bool, typer.Option("--once", help="End after the chat page has answered once.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of everything it writes.", show_default="out/demo, or out/smollm2")
    ] = None,
    model: Annotated[
        DemoModel, typer.Option(help="docs comes along; smollm2 is a real chat model out of the Python index.")
    ] = DemoModel.docs,
) -> None:
    """The whole way on this machine, with a small model.

    Example: hubplugin demo --once
    """
    with interrupt.held():
        from hubplugin import demo

    place = out or OUT / ("demo" if model is DemoModel.docs else model.value)
    raise typer.Exit(demo.run(place, demo.SHOWS[model.value], once=once))
