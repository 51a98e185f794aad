"""One service for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn", reason="pip install 'vlaunch[serve]'")

from tests.serving.stack import Stack, stack  # noqa: E402


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Controller, API and one worker with the model `scripted`. No keys: it is on loopback."""
    import os

    from tests.conftest import REPOSITORY

    os.environ["PYTHONPATH"] = str(REPOSITORY)  # each test's own comes later than this fixture
    folder = tmp_path_factory.mktemp("service")
    with stack(folder, "--votes", folder / "votes.jsonl") as made:
        yield made
