"""Votes of the page's comparison: one JSON line each, for evaluation. Written whole, readable after any kill."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.openai.errors import ApiError

_MOST_BYTES = 1 << 30

Text = Annotated[str, Field(max_length=50_000)]


class Side(BaseModel):
    """One of the two that were compared."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(max_length=200)]
    answer: Text


class Vote(BaseModel):
    """What a person thought of two answers to one question."""

    model_config = ConfigDict(extra="forbid")

    question: Text
    left: Side
    right: Side
    winner: Literal["left", "right", "tie", "both bad"]


class Votes:
    """A file of votes."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()

    def add(self, body: bytes) -> None:
        """Raises ApiError."""
        if self._file is None:
            raise ApiError(404, "this API keeps no votes")
        try:
            vote = Vote.model_validate_json(body)
        except ValidationError as error:
            raise ApiError(400, f"not a vote: {error.errors()[0]['msg']}") from None
        line = f'{{"at":{time.time():.3f},{vote.model_dump_json()[1:]}\n'.encode()
        with self._lock, self._file.open("ab") as out:
            if out.tell() + len(line) > _MOST_BYTES:
                raise ApiError(507, "the file of votes is full")
            os.write(out.fileno(), line)  # one call: a line is there whole or not at all
