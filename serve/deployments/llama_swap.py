"""config.yaml of llama-swap, which starts and stops a process per model as requests name them.

Its keys: https://github.com/mostlygeek/llama-swap, config-schema.json. Knows YAML; starts nothing.
"""

import math
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from hubplugin.errors import ServeError
from serve import ports
from serve.deployments import engines
from serve.deployments.engines import Settings
from serve.endpoint.offer import Offer
from serve.engine import DEADLINE

PORT = "${PORT}"  # llama-swap writes its own number there
MACRO = "${"
GROUP = "hubplugin"
AT_ONCE = 1000  # requests to one model; llama-swap's own limit of 10 would refuse what vLLM batches, with 429


class _Name(str):
    """Always in quotes: other readers of YAML take `1e3` or `0o17` for numbers."""


class _Dumper(yaml.SafeDumper):
    """Knows _Name."""


_Dumper.add_representer(_Name, lambda dumper, name: dumper.represent_scalar("tag:yaml.org,2002:str", name, style='"'))


def config(offers: Sequence[Offer], device: str, settings: Settings) -> str:
    """The file, with the command that reads it in its first line."""
    offers, needed, budget = engines.fitted(offers, device, settings.memory)
    together = needed <= budget
    for one in offers:
        _refuse(one)
    names = [_Name(one.name) for one in offers]
    content: dict[str, Any] = {
        "healthCheckTimeout": int(DEADLINE),
        "unloadTimeout": max(1, math.ceil(settings.drain)),  # 0 would be its own default
        "models": {name: _model(one, device) for name, one in zip(names, offers, strict=True)},
        # where not all fit beside each other, one runs at a time
        "groups": {GROUP: {"swap": not together, "exclusive": True, "members": [*names]}},
        "hooks": {"on_startup": {"preload": names if settings.eager and together else names[:1]}},
    }
    listen = f"[{settings.host}]" if ":" in settings.host else settings.host
    command = shlex.join(["llama-swap", "--config", "config.yaml", "--listen", f"{listen}:{settings.port}"])
    return f"# {command}\n" + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


def _model(one: Offer, device: str) -> dict[str, Any]:
    words = engines.command(one, device, ports.LOOPBACK, PORT)
    facts = {**one.facts} if one.max_model_len is None else {**one.facts, "max_model_len": one.max_model_len}
    return {
        "cmd": shlex.join(words).replace(shlex.quote(PORT), PORT),
        "proxy": f"http://{ports.LOOPBACK}:{PORT}",
        "checkEndpoint": "/health",
        "env": [f"{name}={value}" for name, value in engines.environment(device).items()],
        "aliases": [_Name(adapter.name) for adapter in one.adapters],  # vLLM gets the name that was asked for
        "ttl": 0,  # seconds without requests after which it is stopped; 0: never, as the endpoint has it
        "concurrencyLimit": AT_ONCE,
        "metadata": facts,  # shown in its /v1/models
    }


def _refuse(one: Offer) -> None:
    """llama-swap fills in ${...} wherever it stands, and has no way to write it otherwise."""
    engines.refuse_lines(one)
    for word in (one.name, str(one.folder.resolve()), *one.words):  # adapters' names are among the words
        if MACRO in word:
            raise ServeError(word, f"llama-swap would fill in {MACRO}...}}", "rename it, or use --print vllm-router")
