"""Ports of this host."""

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of `host` that nobody listens on ("" = all interfaces)."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether this host could listen on a TCP port, on all interfaces."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
