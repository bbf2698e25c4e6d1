"""The commands for vllm-router (0.1.17): a vLLM per model on a port of its own, the router, and what tells it of them.

Knows its options; starts nothing. Where there are several models they are made known by POST /workers: with
--enable-igw the router ignores --worker-urls, and without it it sends every request to any of them.
"""

import json
import shlex
from collections.abc import Sequence

from hubplugin.errors import ServeError
from serve import ports
from serve.deployments import engines
from serve.deployments.engines import Settings
from serve.endpoint.offer import Offer
from serve.engine import DEADLINE

LAST_PORT = 65535


def commands(offers: Sequence[Offer], device: str, settings: Settings) -> str:
    """Lines for a POSIX shell: the engines listen on the ports after the router's."""
    offers, needed, budget = engines.fitted(offers, device, settings.memory)
    _refuse(offers, needed, budget, settings)
    numbers = range(settings.port + 1, settings.port + 1 + len(offers))
    urls = [ports.url(ports.LOOPBACK, number) for number in numbers]
    router = ["vllm-router", "--host", settings.host, "--port", str(settings.port)]
    waiting = ["--worker-startup-timeout-secs", str(int(DEADLINE))]
    lines = ["# one engine per model, each in a terminal or a service of its own"]
    lines += [_engine(one, device, number) for one, number in zip(offers, numbers, strict=True)]
    if len(offers) == 1:
        lines += ["# in front of it; for replicas start it again on other ports, and add their URLs"]
        return "\n".join([*lines, shlex.join([*router, *waiting, "--worker-urls", *urls]), ""])
    lines += ["# in front of them", shlex.join([*router, *waiting, "--enable-igw"])]
    lines += ["# once the engines answer /health; a replica is a further line with another URL"]
    own = ports.url(settings.host, settings.port)
    lines += [_known(own, one.name, url) for one, url in zip(offers, urls, strict=True)]
    return "\n".join([*lines, ""])


def _engine(one: Offer, device: str, number: int) -> str:
    variables = [f"{name}={value}" for name, value in engines.environment(device).items()]
    return shlex.join(["env", *variables, *engines.command(one, device, ports.LOOPBACK, str(number))])


def _known(router: str, name: str, url: str) -> str:
    body = json.dumps({"url": url, "model_id": name}, ensure_ascii=False)
    return shlex.join(["curl", "--fail", "--json", body, f"{router}/workers"])


def _refuse(offers: Sequence[Offer], needed: int, budget: int, settings: Settings) -> None:
    for one in offers:
        engines.refuse_lines(one)
    if settings.port + len(offers) > LAST_PORT:
        what = f"the engines listen on the {len(offers)} ports after it, and {LAST_PORT} is the last"
        raise ServeError(f"--port {settings.port}", what, "choose a lower one")
    if needed > budget:
        what = f"all engines run at once, take {needed / 1e9:.1f} GB, and may take {budget / 1e9:.1f}"
        fix = "name fewer models, raise --memory, or use --print llama-swap, which runs one at a time"
        raise ServeError(", ".join(one.name for one in offers), what, fix)
