"""The verb that serves models behind one endpoint."""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hubplugin import interrupt, progress
from hubplugin.errors import ServeError
from hubplugin.verbs.application import LOOPBACK, Host, Port, Variants, app

if TYPE_CHECKING:
    from serve.deployments import engines
    from serve.endpoint.command import Settings
    from serve.endpoint.offer import Offer

GIB = 2**30
PORT = 8000
# of the endpoint itself: another gateway has its own
OWN = ("keys", "requests_at_once", "requests_per_minute", "max_tokens", "max_body", "logs")
NOT_OF_RAY = ("eager", "memory")  # Ray starts every engine, where a node has room


class Gateway(StrEnum):
    """Another one that serves the same models."""

    LLAMA_SWAP = "llama-swap"
    VLLM_ROUTER = "vllm-router"
    RAY_SERVE = "ray-serve"


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
Drafter = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="A variant that drafts for its base (speculative decoding); or a folder or repo.",
        show_default="none",
    ),
]
DraftTokens = Annotated[int, typer.Option(min=1, max=32, help="Tokens that are drafted at a time.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        help="A LoRA adapter, folder or repo id, served beside its base under a name of its own; may be repeated.",
        show_default="none",
    ),
]
Drain = Annotated[float, typer.Option(min=0, help="Seconds for requests under way when it is stopped.")]
Printed = Annotated[
    Gateway | None,
    typer.Option("--print", help="Print what this other gateway needs, and start nothing.", show_default="none"),
]
OnRay = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Serve by Ray Serve on a cluster: auto (RAY_ADDRESS, or the one this machine is a node of), HOST:PORT, or "
        "local (one of this machine alone).",
        show_default="here, by this endpoint",
    ),
]
Replicas = Annotated[int | None, typer.Option(min=1, help="Engines of each model on Ray Serve.", show_default="1")]


@app.command("serve")
def _serve(
    context: typer.Context,
    targets: Targets,
    variant: Chosen = None,
    out: Variants = None,
    name: Name = None,
    host: Host = LOOPBACK,
    port: Port = PORT,
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
    draft: Drafter = None,
    draft_tokens: DraftTokens = 4,
    lora: Adapters = None,
    printed: Printed = None,
    ray: OnRay = None,
    replicas: Replicas = None,
) -> None:
    """Serve models behind one OpenAI-compatible endpoint, each on a vLLM of its own.

    Prints the URL once the first one answers, and ends by ctrl-C. Engines of further models start when they are asked.
    Options of vLLM follow after --. With VLLM_API_KEY in the environment requests must carry it.

    Example: hubplugin serve manifests/demo.yaml --port 8001 -- --max-num-seqs 16
    """
    with interrupt.held():
        from serve.endpoint import command
        from serve.endpoint.guard import Limits

    offers = _offers(targets, variant or (), out, max_model_len, tuple(context.obj or ()))  # behind --
    if name is not None:
        offers = _named(offers, name)
    if draft is not None:
        offers = _drafted(offers, draft, draft_tokens, targets, out)
    offers = _adapted(offers, lora or ())
    settings = command.Settings(
        host=host,
        port=port,
        keys=command.keys(keys),
        open=unguarded,
        limits=Limits(int(max_body * 2**20), requests_at_once, requests_per_minute, max_tokens),
        memory=_bytes(memory),
        eager=eager,
        logs=logs,
        drain=drain,
    )
    if printed or ray or replicas:
        return _elsewhere(context, offers, settings, printed, ray, replicas)
    raise typer.Exit(
        command.run_forever(offers, settings, lambda url: print(f"{url}/v1", flush=True), progress.progress)
    )


def _elsewhere(
    context: typer.Context,
    offers: list["Offer"],
    settings: "Settings",
    printed: Gateway | None,
    ray: str | None,
    replicas: int | None,
) -> None:
    """Print what another gateway needs, or serve by Ray Serve."""
    if replicas and ray is None and printed is not Gateway.RAY_SERVE:
        raise ServeError(f"--replicas {replicas}", "are for Ray Serve", "add --ray ADDRESS or --print ray-serve")
    _refuse_own(context, printed or Gateway.RAY_SERVE)
    if printed is not None:
        return print(_for_another(printed, offers, settings, replicas or 1), end="")
    raise typer.Exit(_on_ray(str(ray), offers, settings, replicas or 1))


def _named(offers: list["Offer"], name: str) -> list["Offer"]:
    """The only one, under this name."""
    if len(offers) > 1:
        raise ServeError(f"--name {name}", f"{len(offers)} models are served", "leave it out, or serve one")
    return [replace(offers[0], name=name)]


def _refuse_own(context: typer.Context, printed: Gateway) -> None:
    """Raise ServeError for an option that would be lost."""
    for name in OWN + NOT_OF_RAY * (printed is Gateway.RAY_SERVE):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option = "--" + name.replace("_", "-")
            raise ServeError(option, "is of hubplugin's own endpoint", f"leave it out, and set it up in {printed}")


def _for_another(gateway: Gateway, offers: list["Offer"], settings: "Settings", replicas: int) -> str:
    """The text that another gateway needs. Raises ServeError where it cannot serve these."""
    from serve.deployments import llama_swap, ray_serve, vllm_router

    made = {
        Gateway.LLAMA_SWAP: llama_swap.config,
        Gateway.VLLM_ROUTER: vllm_router.commands,
        Gateway.RAY_SERVE: ray_serve.config,
    }
    return made[gateway](offers, *_known(gateway, offers, settings, replicas))


def _on_ray(address: str, offers: list["Offer"], settings: "Settings", replicas: int) -> int:
    """Serve on a cluster until a signal; the exit code."""
    from hubplugin.cluster import serving

    known = _known(Gateway.RAY_SERVE, offers, settings, replicas)
    return serving.run_forever(offers, *known, address, lambda url: print(f"{url}/v1", flush=True))


def _known(
    gateway: Gateway, offers: list["Offer"], settings: "Settings", replicas: int
) -> tuple[str, "engines.Settings"]:
    """The device, and what another gateway is told. Raises ServeError for what it would not guard or could not run."""
    from serve import ports, vllm_settings
    from serve.deployments import engines
    from serve.endpoint import offer

    if not ports.is_loopback(settings.host) and not settings.open:
        what = f"is not loopback, and nothing here makes {gateway} ask for a key"
        raise ServeError(f"--host {settings.host}", what, "say --open, and see to it there")
    if any(one.adapters for one in offers) and gateway is not Gateway.LLAMA_SWAP:
        fix = "leave it out (of a manifest, name models with --variant), or merge the adapter into the model"
        raise ServeError("--lora", f"{gateway} routes by the names of models, and would not find an adapter", fix)
    device = vllm_settings.find_device()
    offer.check(offers, device)
    port = settings.port or PORT
    return device, engines.Settings(
        settings.host, port, settings.eager, memory=settings.memory, drain=settings.drain, replicas=replicas
    )


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIB)


def _offers(
    targets: list[str], variants: Sequence[str], out: Path | None, length: int | None, behind: tuple[str, ...]
) -> list["Offer"]:
    """All models of all targets."""
    from hubplugin.hub import resolve
    from serve.endpoint.offer import Offer

    found = [each for target in targets for each in resolve.find(target, variants, out)]
    return [
        Offer(
            each.name,
            each.folder,
            each.facts,
            length or each.serving.max_model_len,
            (*each.serving.options, *behind),
            adapters=each.adapters,
        )
        for each in found
    ]


def _drafted(offers: list["Offer"], draft: str, tokens: int, targets: list[str], out: Path | None) -> list["Offer"]:
    """The offers, the first of which has a drafter: a variant of its manifest, or what is found under that name."""
    from hubplugin.hub import resolve
    from hubplugin.manifest.reading.yaml_file import ENDINGS
    from serve.endpoint.companions.drafting import Draft

    manifest = targets[0].endswith(ENDINGS)
    (found,) = resolve.find(targets[0], (draft,), out) if manifest else resolve.find(draft)
    if found.adapters:
        raise ServeError(f"--draft {draft}", "is a LoRA adapter, no model", "name a variant with weights of its own")
    drafter = Draft(found.name, found.folder.resolve(), tokens, found.facts.get("acceptance_rate"))
    if drafter.folder == offers[0].folder.resolve():
        raise ServeError(f"--draft {draft}", "is the model that it would draft for", "name one of its variants")
    return [replace(offers[0], draft=drafter), *offers[1:]]


def _adapted(offers: list["Offer"], targets: Sequence[str]) -> list["Offer"]:
    """The offers, each with the adapters that were trained on it. Raises ServeError where nobody is an adapter's
    base; one model alone is taken for it, because adapters often name the folder that they were trained from."""
    from hubplugin.hub import adapters

    for adapter in [adapters.find(target) for target in targets]:
        bases = [one for one in offers if adapter.base in (one.name, str(one.folder), str(one.folder.resolve()))]
        if not bases and len(offers) == 1:
            progress.progress(
                f"{adapter.name} | its base is {adapter.base or 'not named'}; it is served with {offers[0].name}"
            )
            bases = offers
        if not bases:
            what = f"was trained on {adapter.base}, which is none of the models that are served"
            raise ServeError(adapter.name, what, "serve its base too, or serve it with one model alone")
        base = replace(bases[0], adapters=(*bases[0].adapters, adapter))
        offers = [base if one is bases[0] else one for one in offers]
    return offers
