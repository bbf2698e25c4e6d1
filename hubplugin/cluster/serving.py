"""`hubplugin serve --ray`: models as an application of Ray Serve, which places engines and balances their replicas.

Ray Serve LLM does the serving; what its engines get is what the endpoint's own would (`serve.deployments.ray_serve`).
Knows nodes and folders; no weights.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hubplugin.cluster import checks, connection
from hubplugin.cluster.checks import Shared
from hubplugin.cluster.resources import Node
from hubplugin.errors import ClusterError, one_line
from hubplugin.progress import progress
from serve import ports, signals
from serve.deployments import ray_serve
from serve.deployments.engines import Settings
from serve.endpoint.offer import Offer

INSTALL = "pip install 'hubplugin[cluster]'"
LOOK = "look at the log of its replica: `ray logs`, or /tmp/ray/session_latest/logs/serve on its node"


def run_forever(
    offers: Sequence[Offer], device: str, settings: Settings, address: str, ready: Callable[[str], None]
) -> int:
    """Serve on a cluster until SIGINT (returns 130) or SIGTERM (returns 0), and take the application away again.

    `ready` is called once, with the URL on this machine, when all engines answer. Raises ClusterError where the cluster
    cannot be reached, a node lacks a model's folder, or an engine does not start.
    """
    results = sys.stdout  # while a cluster is connected, Ray's own words go to stderr
    with (
        signals.interruptible() as caught,
        contextlib.suppress(KeyboardInterrupt),
        connection.connected(address) as ray,
    ):
        library, build = _library()
        nodes = _fitting(connection.nodes(ray), device)
        shared = Shared((), tuple(dict.fromkeys(str(folder.resolve()) for one in offers for folder in one.folders)))
        checks.check_nodes(ray, nodes, shared, shared.seen())
        settings = replace(settings, cpus=min(node.cpus for node in nodes))
        arguments = ray_serve.arguments(offers, device, settings)
        with _application(library, build, arguments, settings):
            with contextlib.redirect_stdout(results):
                ready(ports.url(settings.host, settings.port))
            signals.wait()
    return signals.exit_code(caught)


def _library() -> tuple[Any, Callable[[Any], Any]]:
    """Ray Serve, and what builds its application. Raises ClusterError where it is not installed."""
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    try:
        from ray import serve
        from ray.serve.llm import build_openai_app
    except ImportError as missing:
        raise ClusterError("Ray Serve", f"cannot be imported: {one_line(missing)}", INSTALL) from missing
    return serve, build_openai_app


def _fitting(nodes: Sequence[Node], device: str) -> list[Node]:
    """Nodes that can run an engine. Raises ClusterError where there is none."""
    fitting = [node for node in nodes if device == "cpu" or node.gpus]
    if not fitting:
        raise ClusterError("Ray cluster", "has no node with a GPU, and this vLLM needs one", connection.START)
    return fitting


@contextlib.contextmanager
def _application(library: Any, build: Callable[[Any], Any], arguments: Any, settings: Settings) -> Iterator[None]:
    """While it runs, alone. Raises ClusterError where it does not start, or others are served on the cluster already:
    there is one port for all, and ours would not count."""
    if others := library.status().applications:
        fix = "`serve shutdown` ends it; or add the application that --print ray-serve writes to its file"
        raise ClusterError("Ray Serve", f"serves {', '.join(others)} on this cluster already", fix)
    library.start(proxy_location="EveryNode", http_options={"host": settings.host, "port": settings.port})
    models = arguments["llm_configs"]
    progress(f"ray    {len(models)} models, {settings.replicas} engines each, start")
    try:
        try:
            library.run(build(arguments), name=ray_serve.APPLICATION, route_prefix="/")
        except (RuntimeError, ValueError) as error:
            raise ClusterError("Ray Serve", f"does not start the engines: {one_line(error)}", LOOK) from error
        yield
    finally:
        progress(f"ray    stopping; requests under way have {settings.drain:g} s")
        library.shutdown()
