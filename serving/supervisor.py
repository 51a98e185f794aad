"""The supervisor of a service on one machine: `python -m serving.supervisor --home DIR`.

It starts controller, API and workers, starts them again when they die, and says "ready" only after a model has
answered through the API. The listening sockets of controller and API are its own, so a restart of either refuses no
connection. Its processes die with it, however it dies (Linux); with --leash it ends itself when its input does, that
is with whoever started it.
"""

from __future__ import annotations

import argparse
import fcntl
import glob
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import IO

from serving.client import answers
from serving.listening import listen
from serving.service import LOCK, LOGS, SECRET, STATE, State, api_key, read_service
from trainer.errors import NotReady, Preempted, UsageError, VlaunchError

log = logging.getLogger("service")

_LOOK_S = 0.1
# A process that dies is started again after a pause that doubles; one that lived a minute begins anew.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _STEADY_S = 0.5, 30.0, 60.0
# A worker that never got ready so often in a row will not the next time either.
_MOST_FALSE_STARTS = 3
# A drain's longest, and some.
_STOP_S = 130.0
# One token of the biggest model on the slowest machine.
_PROBE_TIMEOUT_S = 60.0
# Of a worker that was drained, or whose machine, this one, is being taken.
_LEFT_CODES = (0, Preempted.exit_code)
# Another start would not mend a wrong option or a missing package.
_FINAL_CODES = (UsageError.exit_code, NotReady.exit_code)


class Part:
    """One process of the service, through all its lives."""

    def __init__(
        self, name: str, command: list[str], home: Path, fd: int | None, environment: dict[str, str]
    ) -> None:
        self.name = name
        self._command = command
        self._log = home / LOGS / f"{name}.log"
        self.ready_file = home / f"{name}.ready"
        self._fd = fd
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._next_start = 0.0
        self._started_at = 0.0
        self.false_starts = 0
        self.restarts = -1
        self.done: int | None = None
        """The exit code after which it is not started again."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def is_worker(self) -> bool:
        return self.name.startswith("worker")

    def look(self, now: float) -> None:
        """Start it, or start it again, when that is due."""
        if self.done is not None or self.pid is not None:
            return
        if self._process is not None:
            self._bury(self._process.returncode, now)
        elif now >= self._next_start:
            self._start(now)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return next(
            (line for line in reversed(lines) if line.startswith("Error: ")), lines[-1] if lines else ""
        )

    def _start(self, now: float) -> None:
        self.ready_file.unlink(missing_ok=True)
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [*self._command, "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=() if self._fd is None else (self._fd,),
                env={**os.environ, **self._environment},
                start_new_session=True,  # Ctrl-C in a terminal is the supervisor's to answer
            )
        self._started_at = now
        self.restarts += 1

    def _bury(self, code: int, now: float) -> None:
        self._process = None
        if self.is_worker and code in _LEFT_CODES:
            self.done = 0
            return
        self.false_starts = 0 if self.ready_file.exists() else self.false_starts + 1
        if code in _FINAL_CODES or (self.is_worker and self.false_starts >= _MOST_FALSE_STARTS):
            self.done = code
            return
        if now - self._started_at > _STEADY_S:
            self._pause_s = _FIRST_PAUSE_S
        log.warning("%s died (%s); again in %.1f s", self.name, _cause(code), self._pause_s)
        self._next_start = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


class Supervisor:
    """Runs the parts of one service until it is told to stop or cannot go on."""

    def __init__(self, home: Path, leash: IO[bytes] | None) -> None:
        self._home = home
        self._leash = leash
        self._service = read_service(home)
        self._state = State(os.getpid())
        self._told = False
        self._doors: list[socket.socket] = []
        self._answered = threading.Event()
        self._asking: threading.Thread | None = None

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        (self._home / LOGS).mkdir(exist_ok=True)
        try:
            self._parts = self._make_parts()
            self._save()
            while not self._told and not self._unleashed(_LOOK_S):
                self._look()
        except VlaunchError as error:
            self._fail(error.message)
        self._stop()
        return 1 if self._state.state == "failed" else 0

    def _look(self) -> None:
        now = time.monotonic()
        for part in self._parts:
            part.look(now)
        workers = [part for part in self._parts if part.is_worker]
        over = [part for part in self._parts if part.done is not None]
        for part in over:
            if not part.is_worker or (len(over) == len(workers) and part.done):
                raise VlaunchError(f"{part.name}: {part.last_words().removeprefix('Error: ')}")
        if workers and len(over) == len(workers):
            log.info("every worker here was drained")
            self._told = True
        if self._state.state == "starting" and self._answers():
            self._state.state = "ready"
        self._state.restarts = sum(max(0, part.restarts) for part in self._parts)
        self._state.processes = {part.name: part.pid for part in self._parts}
        self._save()

    def _answers(self) -> bool:
        """Whether a model answers: asked of the API in a thread of its own, so that nothing here waits."""
        workers = [part for part in self._parts if part.is_worker]
        if not all(part.ready_file.exists() for part in workers if part.done is None):
            return False
        if self._service.join:
            return True
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._ask, daemon=True)
            self._asking.start()
            self._answered.wait(_LOOK_S)
        return self._answered.is_set()

    def _ask(self) -> None:
        if answers(self._state.url or "", self._service.model, api_key(self._home), _PROBE_TIMEOUT_S):
            self._answered.set()

    def _make_parts(self) -> list[Part]:
        service, home = self._service, self._home
        secret = ["--secret-file", str(home / SECRET)]
        parts = []
        controller = service.join
        if controller is None:
            door, api_door = self._listen(service.controller_port), self._listen(service.port)
            # Workers elsewhere join by this machine's name; those here do not need it.
            controller = self._state.controller = f"http://127.0.0.1:{_port(door)}"
            self._state.url = f"http://{_shown(service.host)}:{_port(api_door)}"
            parts = [
                self._part("controller", "serving.controller", secret, door),
                self._part(
                    "api", "serving.api", [*secret, *service.api, "--controller", controller], api_door
                ),
            ]
        for number in range(service.workers):
            name = f"worker-{number}"
            words = [
                *service.worker,
                *secret,
                "--controller",
                controller,
                "--host",
                service.host,
                "--port",
                "0",
            ]
            words += ["--ready-file", str(home / f"{name}.ready")]
            parts.append(self._part(name, "serving.worker", words, None, self._gpus(number)))
        return parts

    def _part(
        self,
        name: str,
        module: str,
        words: list[str],
        door: socket.socket | None,
        environment: dict[str, str] | None = None,
    ) -> Part:
        fd = None if door is None else door.fileno()
        given = [] if fd is None else ["--fd", str(fd)]
        return Part(
            name, [sys.executable, "-P", "-m", module, *words, *given], self._home, fd, environment or {}
        )

    def _listen(self, port: int) -> socket.socket:
        self._doors.append(listen(self._service.host, port))
        return self._doors[-1]

    def _gpus(self, number: int) -> dict[str, str]:
        """Each of several workers its own cards, where there are cards."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = visible.split(",") if visible else [path.removeprefix("/dev/nvidia") for path in _cards()]
        each = self._service.num_gpus
        if self._service.workers == 1 or not cards:
            return {}
        if each * self._service.workers > len(cards):
            raise NotReady(f"{self._service.workers} workers of {each} GPUs need more than {len(cards)}")
        return {"CUDA_VISIBLE_DEVICES": ",".join(sorted(cards)[number * each : (number + 1) * each])}

    def _unleashed(self, wait_s: float) -> bool:
        """Waits, and says whether whoever started this is gone."""
        if self._leash is None:
            time.sleep(wait_s)
            return False
        readable, _, _ = select.select([self._leash], [], [], wait_s)
        return bool(readable) and not os.read(self._leash.fileno(), 1)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def _fail(self, problem: str) -> None:
        log.error("%s", problem)
        self._state.state, self._state.problem = "failed", problem

    def _stop(self) -> None:
        """Workers first, so that the API is there while they finish what they have."""
        failed = self._state.state == "failed"
        if not failed:
            self._state.state = "stopping"
            self._save()
        parts = getattr(self, "_parts", [])
        for of_workers in (True, False):
            some = [part for part in parts if part.is_worker == of_workers]
            for part in some:
                part.signal(signal.SIGTERM)
            deadline = time.monotonic() + _STOP_S
            while any(part.pid for part in some) and time.monotonic() < deadline:
                time.sleep(_LOOK_S / 5)
            for part in some:
                part.signal(signal.SIGKILL)
        self._state.state = "failed" if failed else "stopped"
        self._state.processes = {}
        self._save()

    def _save(self) -> None:
        text = json.dumps(asdict(self._state))
        if text != getattr(self, "_saved", None):
            self._saved = text
            arriving = self._home / f"{STATE}.part"
            arriving.write_text(text)
            arriving.replace(self._home / STATE)


def _port(door: socket.socket) -> int:
    return int(door.getsockname()[1])


def _shown(host: str) -> str:
    """An address to be typed: of a server on all addresses, this machine's own name."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _cards() -> list[str]:
    return glob.glob("/dev/nvidia[0-9]*")


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.supervisor")
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--leash", action="store_true", help="end with standard input")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", stream=sys.stdout
    )
    lock = (options.home / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.error("another supervisor runs this service")
        return NotReady.exit_code
    return Supervisor(options.home, sys.stdin.buffer if options.leash else None).run()


if __name__ == "__main__":
    raise SystemExit(main())
