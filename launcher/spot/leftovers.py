"""What a SkyPilot server that was killed leaves: its children, one of which holds a port that the next server needs.

SkyPilot 0.14.1 ends none of them, neither with the server nor at the next start, so after one kill -9 no server ever
starts again ("port 50011 is already in use"), and no run is recovered. Our plugin is loaded before that port is bound.
"""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

# How SkyPilot 0.14.1 calls its processes: the server itself, and those that carry out requests.
_SERVER = "sky.server.server"
_EXECUTOR = "SkyPilot:executor:"
_ANY = "SkyPilot:"
# A process that was killed holds its port until the kernel has taken it down.
_GONE_S = 10.0


def end_leftovers(queue_port: int) -> list[int]:
    """End this user's children of dead servers: executors, and what listens at the queue's port. Returns their ids."""
    ended = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended meanwhile, or is somebody else's
            if process.uids().real == os.getuid() and _is_child(process, queue_port) and _is_orphan(process):
                process.kill()
                ended.append(process)
    psutil.wait_procs(ended, timeout=_GONE_S)
    return [process.pid for process in ended]


def _is_child(process: psutil.Process, queue_port: int) -> bool:
    command = " ".join(process.cmdline())
    if "multiprocessing" not in command:
        return command.startswith(_EXECUTOR)
    listening = (c for c in process.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN)
    return any(connection.laddr.port == queue_port for connection in listening)


def _is_orphan(process: psutil.Process) -> bool:
    above = [" ".join(parent.cmdline()) for parent in process.parents()]
    return not any(_SERVER in command or command.startswith(_ANY) for command in above)
