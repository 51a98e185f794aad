"""What controller, workers and API say to each other: one message up, one answer down, one table for the API.

A worker announces itself once a second, whole: who it is, where it answers, what it serves, how busy it is. There is
no other registration and nothing to restore: a controller that was killed knows everything again a second later. The
controller itself never calls anybody. All messages are JSON under a signature (serving/signing.py).
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Seconds between two announcements of a worker, and its silence after which it is out.
ANNOUNCE_S = 1.0
EXPIRY_S = 5.0

ANNOUNCE_PATH, TABLE_PATH, DRAIN_PATH = "/announce", "/table", "/drain"

# Ports as users of FastChat know them.
CONTROLLER_PORT, WORKER_PORT, API_PORT = 21001, 21002, 8000

# A worker that does not know by which address others reach it announces this host: the controller puts in the one from
# which it heard the worker.
SEEN_HOST = "0.0.0.0"

_LONGEST_NAME = 200


def parse_address(url: str) -> str:
    """http(s)://HOST:PORT and nothing more, as given. Raises ValueError."""
    parts = urlsplit(url)
    plain = parts.scheme in ("http", "https") and parts.hostname and parts.port is not None
    if not plain or parts.username is not None or url != f"{parts.scheme}://{parts.netloc}":
        raise ValueError("an address is http://HOST:PORT, without a path")
    if not parts.netloc.isascii() or any(sign in parts.netloc for sign in " \\\t\r\n%"):
        raise ValueError("an address has a plain host name")
    return url


State = Literal["ready", "draining", "gone"]
Address = Annotated[str, Field(max_length=_LONGEST_NAME), AfterValidator(parse_address)]
Name = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME, pattern=r"^[\x20-\x7e]+$")]


class Message(BaseModel):
    """Frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Announcement(Message):
    """All that a worker says of itself.

    Attributes:
        url: where the API reaches it; its name in the registry.
        life: of this process; a restarted worker has another one.
        born: when this life began, unix seconds; of two lives at one url the younger is believed.
        models: the model and its adapters, by the names that clients use.
        running, waiting: requests. capacity: how many can run at a time.
        state: "draining" takes no new requests; "gone" is its last word.
        label: whatever tells its operator which of his workers it is.
    """

    url: Address
    life: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    born: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    models: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000)]
    context: Annotated[int, Field(ge=1)]
    abilities: Annotated[tuple[Name, ...], Field(max_length=100)] = ()
    running: Annotated[int, Field(ge=0)] = 0
    waiting: Annotated[int, Field(ge=0)] = 0
    capacity: Annotated[int, Field(ge=1)] = 1
    state: State = "ready"
    label: Annotated[str, Field(max_length=_LONGEST_NAME)] = ""


class Orders(Message):
    """What the controller answers to an announcement."""

    drain: bool = False


class Drain(Message):
    """An operator's wish: this worker takes no new requests, finishes what it has, and ends."""

    url: Address


class Table(Message):
    """Every live worker, for the API. `version` changes when one comes, goes or changes its state, not with load.

    `silent`: lives that went without a word in the last minute. Whatever they still have in hand is lost; a worker
    that said goodbye has finished, and its last bytes may still be on their way.
    """

    controller: Name
    version: int
    workers: tuple[Announcement, ...]
    silent: tuple[str, ...] = ()
