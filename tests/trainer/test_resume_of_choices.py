"""Moments in 8 bit and rows found on the machine resume as exactly as anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run, write_corpus
from tests.trainer.test_every_method import DEATHS, STEPS, exported, numbers
from trainer.artifacts.journal import read_journal
from trainer.artifacts.store import open_store

SHAPE = {
    "model_type": "llama",
    "hidden_size": 256,  # rows of whole blocks of 256: their moments are quantised
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    "settings",
    [
        {"train__optim": "adamw_bnb_8bit", "model__shape": SHAPE},
        {"train__auto_batch": True, "train__global_batch_size": 8},
    ],
    ids=["8-bit moments", "rows found"],
)
def test_a_run_killed_three_times_is_the_run_that_was_never_killed(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "train.jsonl", 60)
    runs = [tmp_path / "runs" / name for name in ("whole", "killed")]
    for run in runs:
        create_run(str(run), corpus, train__max_steps=STEPS, parallel__processes=2, **settings)
    whole, killed = runs
    assert not live(str(whole), tmp_path / "work", Death("never"))
    for number, death in enumerate(DEATHS):
        assert live(str(killed), tmp_path / f"work-{number}", death)
    assert not live(str(killed), tmp_path / "work-last", Death("never"))
    assert numbers(str(killed)) == numbers(str(whole))
    assert exported(killed) == exported(whole)
    starts = [event for event in read_journal(open_store(str(killed))) if event.kind == "started"]
    assert len(starts) == len(DEATHS) + 1 and starts[-1].data["resumed_from"] > 0
