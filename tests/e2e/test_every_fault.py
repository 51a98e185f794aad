"""A fault at every single request of an attempt that claims, restores, saves, commits and collects garbage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.artifacts.fault_proxy import FaultProxy, Trouble
from tests.artifacts.sweep import PART, Case, run
from trainer.artifacts.bucket import BucketStore

ENOUGH = 200


@pytest.mark.parametrize("persistent", [True, False], ids=["asks again", "never asks again"])
@pytest.mark.parametrize("trouble", Trouble, ids=lambda trouble: trouble.name.lower())
def test_a_fault_at_any_request_tears_nothing_loses_nothing_durable_and_the_run_goes_on(
    bucket: Callable[..., BucketStore],
    proxy: FaultProxy,
    tmp_path: Path,
    trouble: Trouble,
    persistent: bool,
) -> None:
    for number in range(1, ENOUGH):
        case = Case(number, trouble, persistent)
        run(case, bucket(case.patience, proxy.url, PART), proxy, tmp_path)
        if not case.happened:
            break  # the attempt has fewer requests
    print(f"{number - 1} cases")
    assert 20 < number < ENOUGH
