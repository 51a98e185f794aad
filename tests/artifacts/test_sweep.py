"""A fault at some requests of an attempt; at every single one in `make e2e` (tests/e2e/test_every_fault.py)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.artifacts.conftest import Bucket
from tests.artifacts.fault_proxy import FaultProxy, Trouble
from tests.artifacts.sweep import PART, Case, run

# Requests of an attempt with two files in two parts each: some fifty on S3, some sixty on GCS.
MOST = 60


@pytest.mark.parametrize("persistent", [True, False], ids=["asks again", "never asks again"])
@pytest.mark.parametrize("trouble", Trouble, ids=lambda trouble: trouble.name.lower())
def test_a_fault_tears_nothing_loses_nothing_durable_and_the_run_goes_on(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path, trouble: Trouble, persistent: bool
) -> None:
    number = random.Random(f"{trouble.name} {persistent}").randint(1, MOST)
    case = Case(number, trouble, persistent)
    run(case, bucket(case.patience, proxy.url, PART), proxy, tmp_path)
