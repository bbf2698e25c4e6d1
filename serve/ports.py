"""TCP ports on this machine: one that is free, and a clear error for one that is not.

It knows nothing about what listens. A port that was free a moment ago can be taken before it is used; whoever
binds it still has to handle that.
"""

import errno
import socket

from hubplugin.errors import ServeError

LOOPBACK = "127.0.0.1"


def choose(host: str, port: int | None) -> int:
    """`port` after a check that it can be bound on `host`; a free one where it is None.

    Raises ServeError where the port is taken or not allowed, or the host is no address of this machine.
    """
    if port is not None and not 0 < port < 65536:
        raise ServeError(f"port {port}", "is no TCP port", "use a number from 1024 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As servers do: a port whose last connections are still in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise _explain(host, port, error) from error


def url(host: str, port: int) -> str:
    """The URL under which a browser on this machine reaches a server bound to host and port."""
    if host in ("0.0.0.0", "::", ""):
        host = LOOPBACK
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a server bound to this host can be reached from this machine only."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _explain(host: str, port: int | None, error: OSError) -> ServeError:
    where = f"{host}:{port}" if port else host
    if error.errno == errno.EADDRINUSE:
        return ServeError(where, "the port is in use", "stop what listens there, or choose another with --port")
    if error.errno == errno.EACCES:
        return ServeError(where, "this user may not bind the port", "choose a port of 1024 or more with --port")
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return ServeError(where, "is no address of this machine", f"use --host {LOOPBACK}")
    return ServeError(where, f"the port cannot be bound: {error.strerror}", "choose another with --port")
