"""A worker: `python -m serving.worker --model PATH --controller URL`. One engine behind HTTP, on port 21002.

It announces itself once a second as long as its engine is sound. Told to go (SIGTERM, an operator's drain, the
cloud's notice that the machine is taken), it refuses new requests, finishes those that it has, says goodbye and ends
with exit code 0, or with 75 if its machine is taken: start it elsewhere. Killed, it is missed within seconds. With a
broken engine it ends with 1: start it again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from pydantic import ValidationError

from serving import program
from serving.answering import Answering
from serving.engine import Engine
from serving.engines import EngineOptions, open_engine
from serving.protocol import (
    ANNOUNCE_PATH,
    ANNOUNCE_S,
    CONTROLLER_PORT,
    SEEN_HOST,
    WORKER_PORT,
    Announcement,
    Orders,
    State,
    parse_address,
)
from serving.server import serve_until_told
from serving.signing import HEADER, sign
from trainer.errors import Preempted, UsageError, VlaunchError
from trainer.notices import watched
from trainer.preemption import NEWS, Board

log = logging.getLogger("worker")

# A long answer of a big model takes a minute or two; a spot machine's notice is shorter and wins.
_DRAIN_S = 120.0
# Kept of a notice for the goodbye.
_RESERVE_S = 2.0
_ANNOUNCE_TIMEOUT_S = 3.0
_MOST_WAITING = 256
# Of --advertise: behind NAT, as most machines of clouds are, only others know a worker's address.
SEEN = "seen"


class Worker:
    """One engine's life in a service."""

    def __init__(self, engine: Engine, common: program.Common, board: Board) -> None:
        options = common.options
        self._engine = engine
        self._secret = common.secret
        self._controller: str = options.controller
        self._url = _address(common)
        self._label: str = options.label
        self._spot: bool = options.spot
        self._taken = False
        self._listening = common.listening
        self._board, self._read = board, 0
        self._life, self._born = secrets.token_hex(8), time.time()
        self._told = asyncio.Event()
        self._leave_by: float | None = None
        self._known: bool | None = None
        self._ready_file: Path | None = options.ready_file
        self.answering = Answering(engine, common.secret, most_waiting=options.max_waiting)

    async def run(self) -> None:
        """Serves until told to go.

        Raises:
            VlaunchError: the engine broke. Preempted: the machine is taken.
        """
        timeout = aiohttp.ClientTimeout(total=_ANNOUNCE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as self._session:
            announcing = asyncio.create_task(self._announce_for_ever())
            log.info("%s answers at %s", self._engine.card.name, self._url)
            await serve_until_told(
                self.answering,
                self._listening,
                grace_s=_RESERVE_S,
                told=self._told,
                before_the_end=self._leave,
            )
            announcing.cancel()
            await self._announce("gone")
        if self.answering.broken.is_set():
            raise VlaunchError("the engine broke", hint="the log above says how; a new worker may do")
        if self._taken:
            raise Preempted("this machine is being taken", hint="start the worker elsewhere")

    async def _announce_for_ever(self) -> None:
        while True:
            await self._announce("draining" if self.answering.draining else "ready")
            self._look_at_the_board()
            if not self._engine.healthy():
                self.answering.broken.set()
            if self.answering.broken.is_set():
                self._told.set()
            await asyncio.sleep(ANNOUNCE_S)

    async def _announce(self, state: State) -> None:
        """Tell the controller all; whatever goes wrong is tried again in a second."""
        card = self._engine.card
        running, waiting = self._engine.load()
        body = (
            Announcement(
                url=self._url,
                life=self._life,
                born=self._born,
                models=(card.name, *card.adapters),
                context=card.context,
                abilities=tuple(sorted(card.abilities)),
                running=running,
                waiting=waiting,
                capacity=card.places,
                state=state,
                label=self._label,
            )
            .model_dump_json()
            .encode()
        )
        headers = {HEADER: sign(self._secret, "POST", ANNOUNCE_PATH, body, time.time())}
        problem = ""
        try:
            async with self._session.post(
                self._controller + ANNOUNCE_PATH, data=body, headers=headers, allow_redirects=False
            ) as reply:
                said = await reply.read()
                if reply.status != 200:
                    problem = f"{reply.status} {said[:200].decode(errors='replace')}"
                elif Orders.model_validate_json(said).drain and not self._told.is_set():
                    log.info("the controller says: drain")
                    self._spot = False  # it is this worker that is to go, not its machine
                    self._told.set()
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
            problem = str(error) or type(error).__name__
        if not problem and self._ready_file:
            self._ready_file.touch()
        if self._known is not (not problem):
            self._known = not problem
            log.info(
                "the controller knows this worker" if self._known else f"the controller fails: {problem}"
            )

    def _look_at_the_board(self) -> None:
        """The cloud's notice, if there is one."""
        posted, self._read = self._board.read(self._read)
        for news in posted:
            if news.leave_by is not None and not self._told.is_set():
                log.info("%s: leaving", news.source)
                self._spot = True
                self._leave_by = news.leave_by - _RESERVE_S
                self._told.set()

    async def _leave(self) -> None:
        """No new requests, and the open ones to their end, as long as there is time."""
        self.answering.draining = True
        self._taken = self._spot
        await self._announce("draining")
        left_s = _DRAIN_S if self._leave_by is None else max(0.0, self._leave_by - time.monotonic())
        if self.answering.broken.is_set():
            left_s = 0.0
        try:
            async with asyncio.timeout(left_s):
                await self.answering.empty()
            log.info("drained")
        except TimeoutError:
            log.warning("%d requests are cut off", self.answering.open)


def _address(common: program.Common) -> str:
    """Where others reach this worker, as far as it can know."""
    advertise: str | None = common.options.advertise
    if advertise not in (None, SEEN):
        return str(advertise)
    host = SEEN_HOST if advertise else _reachable_host(common.host, common.options.controller)
    return f"http://{host}:{common.port}"


def _reachable_host(bound: str, controller: str) -> str:
    """This machine's address as seen on the way to the controller, where the worker listens on all of them."""
    if bound not in ("0.0.0.0", "::"):
        return f"[{bound}]" if ":" in bound else bound
    parts = urlsplit(controller)
    try:
        with socket.socket(socket.AF_INET6 if bound == "::" else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((parts.hostname or "", parts.port or CONTROLLER_PORT))  # sends nothing
            found = str(probe.getsockname()[0])
    except OSError as error:
        raise UsageError(
            f"there is no way to {controller}: {error.strerror}", hint="--advertise http://THIS-MACHINE:PORT"
        ) from None
    return f"[{found}]" if ":" in found else found


def parser() -> argparse.ArgumentParser:
    made = program.parser("serving.worker", port=WORKER_PORT)
    made.add_argument("--model", required=True, help="a folder in Hugging Face layout, or a Hugging Face id")
    made.add_argument("--name", help="what clients call it; default: the end of --model")
    made.add_argument("--engine", default="hf", help="hf, vllm, or MODULE:FUNCTION")
    made.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH")
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    made.add_argument("--dtype", default="auto", choices=("auto", "bf16", "fp16", "fp32"))
    made.add_argument("--load-8bit", action="store_true")
    made.add_argument("--load-4bit", action="store_true")
    made.add_argument("--num-gpus", type=int, default=1)
    made.add_argument("--max-running", type=int, help="requests at a time; default: as the engine decides")
    made.add_argument("--max-waiting", type=int, default=_MOST_WAITING, help="more than that are told 429")
    made.add_argument("--controller", default=f"http://127.0.0.1:{CONTROLLER_PORT}", metavar="URL")
    made.add_argument(
        "--advertise",
        metavar="URL",
        help=f"where the API reaches this worker; {SEEN}: as the controller sees it",
    )
    made.add_argument("--label", default="", help="what operators call it")
    made.add_argument(
        "--spot", action="store_true", help="SIGTERM says that the machine is taken: end with 75"
    )
    made.add_argument("--template", help="chat template instead of the one that the model was trained with")
    made.add_argument(
        "--ready-file", type=Path, help=argparse.SUPPRESS
    )  # touched when the controller knows it
    return made


def engine_options(options: argparse.Namespace) -> EngineOptions:
    """Raises UsageError."""
    adapters = {}
    for given in options.adapter:
        name, equals, path = given.partition("=")
        if not (name and equals and path):
            raise UsageError(f"--adapter {given} is no NAME=PATH")
        adapters[name] = path
    return EngineOptions(
        model=options.model,
        name=options.name or Path(options.model).name,
        adapters=adapters,
        device=options.device,
        dtype=options.dtype,
        load_8bit=options.load_8bit,
        load_4bit=options.load_4bit,
        num_gpus=options.num_gpus,
        max_running=options.max_running,
        template=options.template,
    )


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    signal.signal(NEWS, signal.SIG_IGN)  # the board is read once a second anyway
    board = Board()

    async def serve(common: program.Common) -> None:
        for url in (options.controller, options.advertise):
            if url not in (None, SEEN):
                _checked(url)
        engine = await open_engine(options.engine, engine_options(options))
        try:
            await Worker(engine, common, board).run()
        finally:
            await engine.close()

    # Forked before anything heavy is imported, and before there are threads.
    return program.run(options, serve, around=watched(board))


def _checked(url: str) -> None:
    try:
        parse_address(url)
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from None


if __name__ == "__main__":
    raise SystemExit(main())
