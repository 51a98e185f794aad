"""Every seed that a config accepts starts every process at a point of its own."""

from __future__ import annotations

import itertools

import torch

from trainer.checkpoint import seed_process

SEEDS = (0, 42, 20_231_120, 2**31 - 1)  # from 18,446,630 on the number was too large for torch


def test_every_seed_that_a_config_accepts_gives_every_process_its_own_stream() -> None:
    drawn = set()
    for seed, step, rank in itertools.product(SEEDS, (0, 1, 2, 1_000_000), (0, 1, 7)):
        seed_process(seed, step, rank)
        drawn.add(float(torch.rand((), dtype=torch.float64)))
    assert len(drawn) == len(SEEDS) * 4 * 3
