"""The verb that serves models behind one endpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hubplugin import interrupt, progress
from hubplugin.errors import ServeError
from hubplugin.verbs.application import LOOPBACK, Host, Port, Variants, app

GIB = 2**30


Targets = Annotated[
    list[str], typer.Argument(metavar="TARGET...", help="Folders of models, repo ids, manifests, mixed.")
]
Chosen = Annotated[
    list[str] | None,
    typer.Option(help="A variant of the manifest; may be repeated.", show_default="the base and all that are made"),
]
Name = Annotated[
    str | None, typer.Option(help="Model name that requests carry.", show_default="repo id or folder's name")
]
ModelLength = Annotated[
    int | None,
    typer.Option(help="Tokens of prompt and answer together.", show_default="the model's own; 4096 on a CPU"),
]
Eager = Annotated[bool, typer.Option("--eager", help="Start every engine at once, not when it is asked.")]
Memory = Annotated[
    float | None,
    typer.Option(min=0, help="GiB for all engines; idle ones stop for others.", show_default="0.8 of what is free"),
]
Keys = Annotated[Path | None, typer.Option(help="File of API keys, one per line, beside VLLM_API_KEY.")]
Open = Annotated[bool, typer.Option("--open", help="Beyond loopback without any API key.")]
AtOnce = Annotated[
    int | None,
    typer.Option(min=1, help="Requests at once of one key, or address without keys.", show_default="no limit"),
]
PerMinute = Annotated[int | None, typer.Option(min=1, help="Requests per minute, likewise.", show_default="no limit")]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of one answer, at most.", show_default="what the context holds")
]
MaxBody = Annotated[float, typer.Option(min=0, help="MiB of one request, at most.")]
Logs = Annotated[
    Path | None, typer.Option(help="Folder of engines' logs and of requests.jsonl.", show_default="temporary")
]
Drain = Annotated[float, typer.Option(min=0, help="Seconds for requests under way when it is stopped.")]


@app.command("serve")
def _serve(
    context: typer.Context,
    targets: Targets,
    variant: Chosen = None,
    out: Variants = None,
    name: Name = None,
    host: Host = LOOPBACK,
    port: Port = 8000,
    max_model_len: ModelLength = None,
    eager: Eager = False,
    memory: Memory = None,
    keys: Keys = None,
    unguarded: Open = False,
    requests_at_once: AtOnce = None,
    requests_per_minute: PerMinute = None,
    max_tokens: MaxTokens = None,
    max_body: MaxBody = 8.0,
    logs: Logs = None,
    drain: Drain = 30.0,
) -> None:
    """Serve models behind one OpenAI-compatible endpoint, each on a vLLM of its own.

    Prints the URL once the first one answers, and ends by ctrl-C. Engines of further models start when they are asked.
    Options of vLLM follow after --. With VLLM_API_KEY in the environment requests must carry it.

    Example: hubplugin serve manifests/demo.yaml --port 8001 -- --max-num-seqs 16
    """
    with interrupt.held():
        from hubplugin.hub import resolve
        from serve.endpoint import command
        from serve.endpoint.guard import Limits
        from serve.endpoint.offer import Offer

    behind = tuple(context.obj or ())  # what stands behind --
    found = [each for target in targets for each in resolve.find(target, variant or (), out)]
    offers = [
        Offer(
            each.name,
            each.folder,
            each.facts,
            max_model_len or each.serving.max_model_len,
            (*each.serving.options, *behind),
        )
        for each in found
    ]
    if name is not None:
        if len(offers) > 1:
            raise ServeError(f"--name {name}", f"{len(offers)} models are served", "leave it out, or serve one")
        offers = [replace(offers[0], name=name)]
    settings = command.Settings(
        host=host,
        port=port,
        keys=command.keys(keys),
        open=unguarded,
        limits=Limits(int(max_body * 2**20), requests_at_once, requests_per_minute, max_tokens),
        memory=None if memory is None else int(memory * GIB),
        eager=eager,
        logs=logs,
        drain=drain,
    )
    raise typer.Exit(
        command.run_forever(offers, settings, lambda url: print(f"{url}/v1", flush=True), progress.progress)
    )
