"""The machines of one attempt: who they are, by what SkyPilot tells each of them, and where they meet.

SkyPilot starts the same program on every node, with its rank and the addresses of all in the environment. What the
nodes then say to each other is in gang.py.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from trainer.errors import NotReady, UsageError

# Below the ports that Linux gives to clients (32768 on), beside torchrun's 29400 and 29500. torch takes the next one.
_DEFAULT_PORT = 29600
# SkyPilot starts `run` on all nodes when `setup` is done on all: seconds apart. What may take minutes is starting
# Python from a disk that all of them read at once; a node that has not come after five is not coming.
_DEFAULT_PATIENCE_S = 300.0
_SIOCGIFADDR = 0x8915  # <linux/sockios.h>


@dataclass(frozen=True, slots=True)
class Nodes:
    """The machines of an attempt, as SkyPilot names them to each of them."""

    rank: int
    """This machine's."""
    addresses: tuple[str, ...]
    """Of all, by rank."""
    port: int
    patience_s: float
    """How long to wait for a node that does not appear."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Nodes:
        """SKYPILOT_NUM_NODES, _NODE_RANK, _NODE_IPS; VLAUNCH_RENDEZVOUS_PORT, _TIMEOUT_S.

        Raises:
            UsageError: one of them is missing, malformed or contradicts another.
        """
        count = _whole(environment, "SKYPILOT_NUM_NODES", 1, lowest=1)
        if count == 1:
            return cls(0, ("localhost",), 0, 0.0)
        addresses = tuple(environment.get("SKYPILOT_NODE_IPS", "").split())
        if len(addresses) != count:
            raise UsageError(
                f"SKYPILOT_NUM_NODES={count}, but SKYPILOT_NODE_IPS has {len(addresses)} addresses", hint=_SET
            )
        if not environment.get("SKYPILOT_NODE_RANK"):
            raise UsageError(f"SKYPILOT_NUM_NODES={count}, but there is no SKYPILOT_NODE_RANK", hint=_SET)
        rank = _whole(environment, "SKYPILOT_NODE_RANK", 0, lowest=0)
        if rank >= count:
            raise UsageError(f"SKYPILOT_NODE_RANK={rank} of SKYPILOT_NUM_NODES={count}", hint=_SET)
        port = _whole(environment, "VLAUNCH_RENDEZVOUS_PORT", _DEFAULT_PORT, lowest=1)
        if port > 65534:
            raise UsageError(f"VLAUNCH_RENDEZVOUS_PORT={port}: it and the next one must be ports")
        return cls(
            rank, addresses, port, _seconds(environment, "VLAUNCH_RENDEZVOUS_TIMEOUT_S", _DEFAULT_PATIENCE_S)
        )

    @property
    def count(self) -> int:
        return len(self.addresses)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def rendezvous(self) -> str:
        """Where torch.distributed meets: an init URL."""
        host = self.addresses[0]
        return f"tcp://{f'[{host}]' if ':' in host else host}:{self.port + 1}"

    def name(self, rank: int) -> str:
        return f"node {rank} ({self.addresses[rank]})"


_SET = "SkyPilot sets all three on every node; started by other means, they are yours to set"


def region(environment: Mapping[str, str]) -> str:
    """Where this machine is: as its launcher says, else as SkyPilot does; "" where nobody says."""
    if told := environment.get("VLAUNCH_REGION"):
        return told
    try:
        return str(json.loads(environment.get("SKYPILOT_CLUSTER_INFO") or "{}").get("region") or "")
    except (ValueError, AttributeError):
        return ""


def _whole(environment: Mapping[str, str], name: str, default: int, lowest: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < lowest:
        raise UsageError(f"{name}={text} is no whole number from {lowest} on")
    return int(text)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise UsageError(f"{name}={text} is no number of seconds")
    return seconds


def interface_of(address: str) -> str | None:
    """The network interface that has this address, as gloo wants it named; None if it cannot be told.

    Linux only: the main IPv4 address of each interface, and every IPv6 address.
    """
    try:
        wanted = ip_address(address)
        if wanted.is_loopback:
            return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        if wanted.version == 6:
            with open("/proc/net/if_inet6") as table:
                fields = [line.split() for line in table]
            return next((field[5] for field in fields if int(field[0], 16) == int(wanted)), None)
    except (ValueError, OSError):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def listen(address: str, port: int) -> socket.socket:
    """A listening socket on this address alone; NotReady where it cannot be had."""
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address, port), family=family, backlog=1024)
    except OSError as error:
        raise NotReady(
            f"port {port} of {address} cannot be had: {error.strerror or error}",
            hint="does another attempt still run here? VLAUNCH_RENDEZVOUS_PORT chooses another port; the address "
            "is the first of SKYPILOT_NODE_IPS",
        ) from None
