"""Listening sockets. Light: the supervisor opens them and hands them on to servers."""

from __future__ import annotations

import os
import socket

from trainer.errors import NotReady

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises NotReady where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise NotReady(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
            hint="another port, or 0 for a free one",
        ) from None
    made.setblocking(False)
    return made
