"""The small vlaunch of small.py, run in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Ran


@pytest.fixture
def small(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """small("show", "--json").json"""

    def run(*args: str) -> Ran:
        from launcher.cli import main
        from tests.contracts.small import small as verbs

        capsys.readouterr()
        code = main(args, verbs=verbs)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
