"""The held-out loss can end a run and choose the checkpoint that is exported, also across preemptions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run, write_corpus
from tests.trainer.test_exact_resume import exported, numbers
from trainer.artifacts.journal import read_journal
from trainer.artifacts.metrics import EvalRecord, read_metrics
from trainer.artifacts.store import open_store
from trainer.artifacts.validity import valid_manifests
from trainer.config import parse_config
from trainer.errors import ConfigError
from trainer.standing import Standing

EVERY = 5


def records(losses: list[float]) -> list[EvalRecord]:
    return [EvalRecord(step=EVERY * number, loss=loss, time=0.0) for number, loss in enumerate(losses)]


def test_it_is_over_after_as_many_losses_in_a_row_as_the_patience_has() -> None:
    standing = Standing(2, records([3.0, 2.0, 2.5]))
    assert not standing.over
    standing.add(15, 2.0)  # no better: equal
    assert standing.over and standing.best_step == EVERY
    assert not Standing(0, records([1.0, 2.0, 3.0, 4.0])).over


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    assert Standing(1, records([math.nan])).best_step is None
    assert Standing(1, records([2.0, math.nan])).over


@given(st.lists(st.floats(0.1, 9.0), max_size=12), st.data())
def test_a_resumed_standing_is_that_of_the_run_that_was_never_interrupted(
    losses: list[float], data: st.DataObject
) -> None:
    measured = records(losses)
    cut = data.draw(st.integers(0, len(measured)))
    whole, resumed = Standing(2, measured), Standing(2, measured[:cut])
    for record in measured[max(0, cut - 1) :]:  # the last one before the cut is measured again
        resumed.add(record.step, record.loss)
    assert (whole.best_step, whole.best_loss, whole.over) == (
        resumed.best_step,
        resumed.best_loss,
        resumed.over,
    )


def test_following_a_loss_that_is_never_measured_is_refused() -> None:
    for field in ({"checkpoint": {"keep_best": True}}, {"train": {"early_stopping_patience": 1}}):
        tree = {
            "train": {**field.get("train", {}), "eval_strategy": "no"},
            "checkpoint": field.get("checkpoint", {}),
        }
        with pytest.raises(ConfigError, match="eval_strategy=steps"):
            parse_config(tree)


def overfit(folder: Path, name: str) -> Path:
    """A few conversations learnt by heart at a high rate: the loss on others falls and then rises."""
    run = folder / "runs" / name
    train = write_corpus(folder / "train.jsonl", 4)
    held_out = write_corpus(folder / "held-out.jsonl", 20, seed=1)
    create_run(
        str(run), train, held_out, train__max_steps=200, train__learning_rate=2e-2, train__eval_steps=EVERY,
        train__early_stopping_patience=3, checkpoint__keep_best=True, checkpoint__save_steps=4,
        train__lr_scheduler_type="constant", parallel__processes=2,
    )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overfit")
    run = overfit(folder, "whole")
    assert not live(str(run), folder / "work", Death("never"))
    return run


def test_a_run_ends_when_its_held_out_loss_no_longer_falls(undisturbed: Path) -> None:
    store = open_store(str(undisturbed))
    steps, evaluations = read_metrics(store)
    finished = read_journal(store)[-1]
    assert finished.kind == "finished" and finished.data["steps"] == len(steps) < 200
    best = min(evaluations, key=lambda record: record.loss)
    assert 0 < best.step == len(steps) - 3 * EVERY


def test_the_best_checkpoint_is_kept_beside_the_newest_ones(undisturbed: Path) -> None:
    store = open_store(str(undisturbed))
    steps, evaluations = read_metrics(store)
    best = min(evaluations, key=lambda record: record.loss).step
    kept = [manifest.step for manifest in valid_manifests(store)]
    assert kept[0] == len(steps) and best in kept and len(kept) == 3


def test_the_exported_weights_are_the_best_ones(undisturbed: Path) -> None:
    """Their held-out loss, measured anew from the export, is the lowest one of the run."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.artifacts.layout import EXPORT
    from trainer.dataset import TokenisedCorpus

    evaluations = read_metrics(open_store(str(undisturbed)))[1]
    model = AutoModelForCausalLM.from_pretrained(undisturbed / EXPORT)
    inputs = next((undisturbed.parents[1] / "work").glob("*-e*")) / "inputs"
    held_out = TokenisedCorpus(inputs / "held-out")
    total = learnt = 0.0
    with torch.no_grad():
        for number in range(8):  # create_run's max_eval_samples
            ids, flags = held_out.tokens_of(number)
            row = torch.tensor(ids.astype("int64"))
            logits = model(row[None]).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")
            total += float(losses[torch.tensor(flags[1:] == 1)].sum())
            learnt += float(flags.sum())
    assert total / learnt == pytest.approx(min(record.loss for record in evaluations), rel=1e-5)


def test_a_preempted_run_ends_at_the_same_step_with_the_same_model(tmp_path: Path, undisturbed: Path) -> None:
    run = overfit(tmp_path, "killed")
    deaths = [Death("after", "manifest/", nth) for nth in (1, 2, 3, 1)] + [Death("before", "export/")]
    killed = sum(
        live(str(run), tmp_path / f"work-{n}", death) for n, death in enumerate([*deaths, Death("never")])
    )
    assert killed == len(deaths)
    assert numbers(str(run)) == numbers(str(undisturbed))
    assert exported(run) == exported(undisturbed)
