"""Who belongs to an attempt of several nodes: the proof that each side asks of the other before it listens.

The claim of an epoch holds a random nonce (artifacts/fencing.py), and only who can read the run's store knows it.
Both ends prove it with an HMAC over two fresh challenges; the nonce itself is never sent, and an overheard proof is
of no use on another line. So nobody else on the network can join, end an attempt or tell a node what to load, and
neither can the head of another run. Not protected: the lines are not encrypted, whoever can change packets between
two nodes can speak for them, and many connections at once can keep a node from joining. What torch sends between
the ranks has no more protection than that; the port belongs into a private network.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from trainer.errors import MissingKey, NotReady
from trainer.lines import Broken, Line, Message
from trainer.nodes import Nodes

log = logging.getLogger("trainer")

_PROTOCOL = 1
_RETRY_S = 0.2
_ANSWER_S = 1.0  # what a head that is there may take at least
_HEX = re.compile(r"[0-9a-f]{32,64}")


class Joined(NamedTuple):
    """What a node knows when the head has let it in."""

    line: Line
    epoch: int
    attempt: int


class Door:
    """The head's: lets in who knows the nonce, each node once."""

    def __init__(self, nodes: Nodes, epoch: int, attempt: int, secret: bytes) -> None:
        self._nodes, self._epoch, self._attempt, self._secret = nodes, epoch, attempt, secret
        self._challenges: dict[Line, str] = {}
        self._inside: set[int] = set()

    def greet(self, stranger: Line) -> None:
        challenge = secrets.token_hex(16)
        stranger.send({"say": "hello", "protocol": _PROTOCOL, "epoch": self._epoch, "challenge": challenge})
        self._challenges = {line: text for line, text in self._challenges.items() if line.fileno() >= 0}
        self._challenges[stranger] = challenge

    def admit(self, stranger: Line, message: Message) -> int:
        """The rank of the node that this message proves; Broken for anybody else."""
        rank = message.get("rank")
        if message["say"] != "join" or type(rank) is not int:
            raise Broken("it did not ask to join")
        challenges = f"{self._challenges.pop(stranger)} {_hex(message, 'challenge')}"
        if not hmac.compare_digest(_proof(self._secret, rank, challenges), _hex(message, "proof")):
            log.warning("somebody who cannot read the run's store was refused at the nodes' port")
            raise Broken("it does not know the claim's nonce")
        if rank in self._inside or not 0 < rank < self._nodes.count:
            stranger.send({"say": "refused", "why": f"there is a node {rank} already, or none is expected"})
            raise Broken(f"a second node {rank}")
        proof = _proof(self._secret, 0, challenges)
        stranger.send({"say": "welcome", "attempt": self._attempt, "proof": proof})
        self._inside.add(rank)
        return rank


def find_head(nodes: Nodes, secret_of: Callable[[int], bytes]) -> Joined:
    """Try until it works: the head may not be up yet, or an older one not down.

    Args:
        secret_of: reads the claim of an epoch from the run's store.

    Raises:
        NotReady: no head let this node in within nodes.patience_s.
        StoreError: the store does not answer.
    """
    deadline = time.monotonic() + nodes.patience_s
    while True:
        try:
            return _join(nodes, secret_of, max(_ANSWER_S, deadline - time.monotonic()))
        except (OSError, Broken) as error:
            if time.monotonic() + _RETRY_S >= deadline:
                raise NotReady(
                    f"{nodes.name(nodes.rank)} found no head at {nodes.addresses[0]} port {nodes.port} "
                    f"within {nodes.patience_s:g} s: {error}",
                    hint="see the log of node 0; the port must be open between the nodes "
                    "(VLAUNCH_RENDEZVOUS_PORT, VLAUNCH_RENDEZVOUS_TIMEOUT_S)",
                ) from None
        time.sleep(_RETRY_S)


def _join(nodes: Nodes, secret_of: Callable[[int], bytes], within_s: float) -> Joined:
    line = Line(socket.create_connection((nodes.addresses[0], nodes.port), timeout=within_s))
    try:
        hello = line.read_one(within_s)
        epoch = hello.get("epoch")
        if hello.get("protocol") != _PROTOCOL or type(epoch) is not int:
            raise Broken("it is no head of this version of vlaunch")
        try:
            secret = secret_of(epoch)
        except MissingKey:
            raise Broken(f"it has claimed epoch {epoch}, which the store does not show here") from None
        mine = secrets.token_hex(16)
        challenges = f"{_hex(hello, 'challenge')} {mine}"
        proof = _proof(secret, nodes.rank, challenges)
        line.send({"say": "join", "rank": nodes.rank, "challenge": mine, "proof": proof})
        welcome = line.read_one(within_s)
        if welcome["say"] == "refused":
            raise Broken(str(welcome.get("why")))
        if not hmac.compare_digest(_proof(secret, 0, challenges), _hex(welcome, "proof")):
            raise Broken("it cannot read this run's store")
        return Joined(line, epoch, int(welcome["attempt"]))
    except BaseException:
        line.close()
        raise


def _hex(message: Message, field: str) -> str:
    """A field that must be a challenge or a proof, whoever sent it."""
    text = message.get(field)
    if not isinstance(text, str) or not _HEX.fullmatch(text):
        raise Broken(f"it sent no {field}")
    return text


def _proof(secret: bytes, rank: int, challenges: str) -> str:
    """What only who knows the secret can compute; the prover's rank keeps one from being sent back as another."""
    return hmac.new(secret, f"vlaunch node {rank} {challenges}".encode(), "sha256").hexdigest()
