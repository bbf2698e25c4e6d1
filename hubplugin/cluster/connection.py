"""The door to Ray: imported when it is asked for, connected to a cluster that runs, its nodes listed.

Starts a cluster only for the address "local", on this machine, and ends it with the run. Knows addresses and nodes; no
model.
"""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any
from urllib.parse import urlsplit

from hubplugin.cluster.resources import Node
from hubplugin.errors import ClusterError, one_line
from hubplugin.progress import progress, quiet

LOCAL = "local"  # a cluster of this machine alone, started for one run
PATIENCE = 5.0  # seconds that an address has to answer: Ray itself tries for minutes
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and an empty SETTINGS frame
SETTINGS = 4  # the type of the frame that every HTTP/2 server, and so every gRPC server, begins with
START = "start one with `ray start --head`, join with `ray start --address=HOST:6379`, or use --ray local"


def library() -> Any:
    """Ray. Raises ClusterError where it is not installed."""
    # read when Ray loads: no line of one task stands for the same line of another
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        import ray
    except ImportError as missing:
        raise ClusterError("ray", "is not installed", "pip install 'hubplugin[cluster]'") from missing
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at "auto", "local" or HOST:PORT. A connection of the calling program is used as
    it is, and left open.

    Raises ClusterError within seconds where there is no cluster, or one of another Ray or Python.
    """
    ray = library()
    if ray.is_initialized():
        yield ray
        return
    found = _found(address)
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=found,
            include_dashboard=False if found == LOCAL else None,
            logging_level="WARNING",
            log_to_driver=not quiet(),
        )
    except Exception as error:
        ray.shutdown()
        raise ClusterError(f"Ray cluster {address}", f"refuses: {one_line(error)}", START) from error
    _restore(terminated)  # which Ray has replaced
    progress(f"ray    {ray.get_runtime_context().gcs_address}")
    try:
        with redirect_stdout(sys.stderr):  # Ray prints there what it has to say of nodes, and stdout is for results
            yield ray
    finally:
        ray.shutdown()


def nodes(ray: Any) -> list[Node]:
    """The nodes that live and can run tasks."""
    alive = [entry for entry in ray.nodes() if entry["Alive"]]
    hosts = [entry["NodeManagerHostname"] for entry in alive]
    found = []
    for entry in alive:
        name, has = entry["NodeManagerHostname"], entry["Resources"]
        if hosts.count(name) > 1:  # several on one machine
            name = f"{name}:{entry['NodeManagerPort']}"
        found.append(
            Node(
                id=entry["NodeID"],
                name=name,
                cpus=int(has.get("CPU", 0)),
                gpus=int(has.get("GPU", 0)),
                memory=int(has.get("memory", 0)),
            )
        )
    return sorted((node for node in found if node.cpus), key=lambda node: node.name)


def _found(address: str) -> str:
    """The address as Ray takes it, where somebody answers there. Raises ClusterError where nobody does."""
    if address == LOCAL:
        return address
    where = f"Ray cluster {address}"
    if "://" in address:
        what = "is the address of a Ray Client, which has no file system of the cluster"
        raise ClusterError(where, what, "run hubplugin on a node of the cluster, with --ray auto")
    from ray._private import services

    try:
        found = str(services.canonicalize_bootstrap_address(address))
        place = urlsplit(f"//{found}")
        _ask(str(place.hostname), int(place.port or 0))
    except ConnectionError as error:
        raise ClusterError(where, f"cannot be reached: {one_line(error)}", START) from error
    except (ValueError, OSError) as error:
        raise ClusterError(
            where, f"cannot be reached: {one_line(error)}", f"give auto or HOST:PORT; {START}"
        ) from error
    return found


def _ask(host: str, port: int) -> None:
    """Raise OSError where no gRPC server answers at an address: Ray would wait for minutes."""
    with socket.create_connection((host, port), PATIENCE) as opened:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        opened.settimeout(PATIENCE)
        opened.sendall(PREFACE)
        answer = opened.recv(4)
        if len(answer) < 4 or answer[3] != SETTINGS:
            raise ConnectionError(f"what answers at {host}:{port} is no Ray cluster")


def _restore(handler: Any) -> None:
    try:
        signal.signal(signal.SIGTERM, handler)
    except (ValueError, TypeError):  # not in the main thread, or a handler that is not Python's
        return
