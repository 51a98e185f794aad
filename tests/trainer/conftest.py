"""What the tests of notices share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from trainer.preemption import Board


@pytest.fixture
def served() -> Iterator[Callable[[Any], Any]]:
    """Starts services of tests/trainer/metadata_servers.py and ends them with the test."""
    with ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.close()
