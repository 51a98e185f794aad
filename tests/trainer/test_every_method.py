"""Every way of training that the libraries support resumes, bit for bit, after it was killed three times.

All weights, adapters on a 16- or 32-bit, an 8-bit and a 4-bit base; FSDP2, ZeRO-2 and ZeRO-3; two processes, dropout
in the network and on the adapters. A combination that a library cannot do is refused with its reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run, write_corpus
from tests.trainer.test_exact_resume import exported, numbers
from trainer.artifacts.journal import read_journal
from trainer.artifacts.store import open_store
from trainer.artifacts.validity import valid_manifests
from trainer.config import TrainConfig, parse_config
from trainer.errors import ConfigError
from trainer.methods import KINDS, SPREADS, Kind, Spread, impossible, refuse_impossible

STEPS = 14
DEATHS = (Death("after", "manifest/"), Death("staging"), Death("before", "manifest/"))

_KIND: dict[Kind, dict[str, Any]] = {
    "full": {"train__method": "full"},
    "lora": {"train__method": "lora"},
    "lora-8bit": {"train__method": "lora", "lora__load_8bit": True},
    "qlora": {"train__method": "qlora"},
}
_SPREAD: dict[Spread, dict[str, Any]] = {
    "fsdp": {"parallel__strategy": "fsdp"},
    "zero-2": {"parallel__strategy": "deepspeed", "parallel__zero_stage": 2},
    "zero-3": {"parallel__strategy": "deepspeed", "parallel__zero_stage": 3},
}


def config_of(kind: Kind, spread: Spread, offload: str = "none") -> TrainConfig:
    settings = _KIND[kind] | _SPREAD[spread] | {"parallel__offload": offload}
    tree: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, leaf = key.partition("__")
        tree.setdefault(section, {})[leaf] = value
    return parse_config(tree)


EVERY = [(kind, spread) for kind in KINDS for spread in SPREADS]
POSSIBLE = [pair for pair in EVERY if impossible(config_of(*pair)) is None]
IMPOSSIBLE = [
    (*pair, offload)
    for pair in EVERY
    for offload in ("none", "optimizer", "all")
    if impossible(config_of(*pair, offload))
]


@pytest.mark.parametrize(("kind", "spread"), POSSIBLE, ids=map("-".join, POSSIBLE))
def test_a_run_killed_three_times_is_the_run_that_was_never_killed(
    tmp_path: Path, kind: Kind, spread: Spread
) -> None:
    corpus = write_corpus(tmp_path / "train.jsonl", 40)
    held_out = write_corpus(tmp_path / "held-out.jsonl", 8, seed=1)
    runs = [tmp_path / "runs" / name for name in ("whole", "killed")]
    for run in runs:
        create_run(
            str(run), corpus, held_out, train__max_steps=STEPS, train__eval_steps=5, parallel__processes=2,
            lora__dropout=0.1, **_KIND[kind], **_SPREAD[spread],
        )  # fmt: skip
    whole, killed = runs
    assert not live(str(whole), tmp_path / "work", Death("never"))
    for number, death in enumerate(DEATHS):
        assert live(str(killed), tmp_path / f"work-{number}", death)
    assert not live(str(killed), tmp_path / "work-last", Death("never"))

    assert [step[0] for step in numbers(str(whole))] == list(range(1, STEPS + 1))
    assert numbers(str(killed)) == numbers(str(whole))
    assert exported(killed) == exported(whole)
    starts = [event for event in read_journal(open_store(str(killed))) if event.kind == "started"]
    assert len(starts) == len(DEATHS) + 1 and starts[-1].data["resumed_from"] > 0


@pytest.mark.parametrize(("kind", "spread", "offload"), IMPOSSIBLE, ids=map("-".join, IMPOSSIBLE))
def test_what_a_library_cannot_do_is_refused_with_its_reason(
    kind: Kind, spread: Spread, offload: str
) -> None:
    with pytest.raises(ConfigError, match=f"{kind} with {spread}: ") as caught:
        refuse_impossible(config_of(kind, spread, offload))
    assert caught.value.hint


def test_only_what_is_trained_is_in_a_checkpoint(tmp_path: Path) -> None:
    """The frozen base is in the store once, under its hash, and in no checkpoint."""
    corpus = write_corpus(tmp_path / "train.jsonl", 40)
    sizes = {}
    for kind in ("full", "lora"):
        run = tmp_path / "runs" / kind
        create_run(str(run), corpus, train__max_steps=4, **_KIND[kind])  # type: ignore[index]
        assert not live(str(run), tmp_path / f"work-{kind}", Death("never"))
        sizes[kind] = valid_manifests(open_store(str(run)))[0].size
    assert sizes["lora"] < sizes["full"] / 4
