"""What the programs of a service have in common: options, logging, one error for each thing that is wrong.

Controller, API and worker are processes of their own. Under a supervisor (serving/supervisor.py) they inherit their
listening socket and die with it; started by hand they take --host and --port and live by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from serving.listening import listen
from serving.signing import read_secret
from trainer.errors import VlaunchError

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True, slots=True)
class Common:
    """What every program of a service has."""

    secret: bytes
    listening: socket.socket
    options: argparse.Namespace

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    @property
    def host(self) -> str:
        return str(self.listening.getsockname()[0])

    @property
    def address(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parser(module: str, *, port: int) -> argparse.ArgumentParser:
    """Options of all programs; the secret is read from a file or a variable, never from the command line."""
    made = argparse.ArgumentParser(prog=f"python -m {module}")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on")
    made.add_argument("--port", type=int, default=port, help="0: a free one")
    made.add_argument(
        "--secret-file", type=Path, help="what makes processes one service; else VLAUNCH_SERVE_SECRET"
    )
    made.add_argument("--fd", type=int, help=argparse.SUPPRESS)  # a listening socket of the supervisor's
    made.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # the supervisor
    return made


def run(
    options: argparse.Namespace,
    serve: Callable[[Common], Awaitable[None]],
    *,
    around: AbstractContextManager[object] | None = None,
) -> int:
    """Runs one program to its end, inside of `around`; returns its exit code."""
    die_with_parent(options.parent)
    _open_many_files()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", stream=sys.stdout
    )
    try:
        secret = read_secret(options.secret_file)
        listening = (
            listen(options.host, options.port) if options.fd is None else socket.socket(fileno=options.fd)
        )
        listening.setblocking(False)
        with around or nullcontext():
            _run(serve(Common(secret, listening, options)))
    except VlaunchError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"Hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def die_with_parent(parent: int | None) -> None:
    """This process is killed when `parent` is gone, however it went; None: it lives by itself."""
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _open_many_files() -> None:
    """A connection is a file, and a shell's usual limit is 1024 of them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run(main: Awaitable[None]) -> None:
    """asyncio.run, on uvloop where it is installed."""

    async def whole() -> None:
        await main

    try:
        import uvloop
    except ImportError:
        asyncio.run(whole())
    else:
        uvloop.run(whole())
