"""ZeRO-2 and ZeRO-3 train like FSDP, resume to the bit, and continue on another number of processes.

tests/trainer/test_every_method.py kills every method under both stages; here is what the stages have of their own:
offload, weights that really are partitioned, flat buffers of odd length, steps that are skipped.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run, write_corpus
from tests.trainer.test_elastic import move
from tests.trainer.test_exact_resume import exported, numbers
from trainer import model as building
from trainer.artifacts.journal import read_journal
from trainer.artifacts.metrics import StepRecord, read_metrics
from trainer.artifacts.store import open_store
from trainer.config import Offload, parse_config
from trainer.parallel import joined, spread
from trainer.shortage import in_trials

# The largest difference of a loss that another order of float32 sums makes in these runs is some 3e-7.
TOLERANCE = 1e-5
STEPS = 20
# By default weights of fewer than 100,000 numbers are never partitioned: in these networks that would be all.
PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
# Every count of trained numbers here is odd, and no number of processes divides most of the weights evenly.
ODD: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 33,
    "head_dim": 8,
    "intermediate_size": 65,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


def zero(stage: int, offload: Offload = "none") -> dict[str, Any]:
    return {
        "parallel__strategy": "deepspeed",
        "parallel__zero_stage": stage,
        "parallel__offload": offload,
        "parallel__deepspeed": PARTITIONED if stage == 3 else {},
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train.jsonl", 60)


def trained(folder: Path, corpus: Path, **settings: object) -> list[StepRecord]:
    folder.mkdir()
    run = folder / "runs/whole"
    create_run(
        str(run), corpus, train__max_steps=STEPS, checkpoint__save_steps=STEPS, model__dropout=0.0, **settings
    )
    assert not live(str(run), folder / "work", Death("never"))
    return read_metrics(open_store(str(run)))[0]


@pytest.mark.parametrize(("processes", "bf16"), [(1, False), (2, False), (2, True)])
def test_losses_and_norms_are_those_of_fsdp(tmp_path: Path, corpus: Path, processes: int, bf16: bool) -> None:
    """bfloat16 rounds the sums that each strategy forms in its own order: eight bits of mantissa."""
    settings = {"parallel__processes": processes, "train__bf16": bf16, "train__gradient_checkpointing": bf16}
    fsdp = trained(tmp_path / "fsdp", corpus, **settings)
    tolerance = 1e-2 if bf16 else TOLERANCE
    for stage in (2, 3):
        steps = trained(tmp_path / f"zero-{stage}", corpus, **settings, **zero(stage))
        assert [step.batch for step in steps] == [step.batch for step in fsdp]
        assert max(abs(a.loss - b.loss) for a, b in zip(steps, fsdp, strict=True)) < tolerance
        assert max(abs(a.grad_norm - b.grad_norm) for a, b in zip(steps, fsdp, strict=True)) < tolerance
        assert steps[-1].loss < steps[0].loss - 1.0


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "all")])
def test_a_run_with_offload_that_is_killed_is_the_run_that_was_never_killed(
    tmp_path: Path, corpus: Path, stage: int, offload: Offload
) -> None:
    """In bfloat16, with dropout, recomputed activations and a held-out loss between the steps."""
    runs = [tmp_path / "runs" / name for name in ("whole", "killed")]
    for run in runs:
        create_run(
            str(run), corpus, corpus, parallel__processes=2, model__shape=ODD, train__max_steps=10,
            train__eval_steps=3, train__max_eval_samples=4, train__bf16=True,
            train__gradient_checkpointing=True, **zero(stage, offload),
        )  # fmt: skip
    whole, killed = runs
    assert not live(str(whole), tmp_path / "work", Death("never"))
    assert live(str(killed), tmp_path / "work-0", Death("after", "manifest/"))
    assert not live(str(killed), tmp_path / "work-1", Death("never"))

    starts = [event for event in read_journal(open_store(str(killed))) if event.kind == "started"]
    assert starts[-1].data["resumed_from"] == 2
    assert numbers(str(killed)) == numbers(str(whole))
    assert exported(killed) == exported(whole)


# With two or three processes one of them now and then has no row to learn from.
FIVE_ROWS: dict[str, Any] = {"train__global_batch_size": 5, "model__shape": ODD}


def moved(folder: Path, corpus: Path, sizes: list[int], **settings: object) -> list[StepRecord]:
    """A run that loses each machine but the last right after its first checkpoint there."""
    run = folder / "runs/elastic"
    create_run(str(run), corpus, train__max_steps=12, model__dropout=0.0, **FIVE_ROWS, **settings)
    for number, size in enumerate(sizes):
        move(run, size)
        last = number == len(sizes) - 1
        death = Death("never") if last else Death("after", "manifest/")
        assert live(str(run), folder / f"work-{number}", death) != last
    return read_metrics(open_store(str(run)))[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> list[StepRecord]:
    """One process of FSDP from the first to the last step."""
    return moved(tmp_path_factory.mktemp("undisturbed"), corpus, [1])


@pytest.mark.parametrize("stage", [2, 3])
def test_another_number_of_processes_sees_the_same_samples_and_nearly_the_same_losses(
    tmp_path: Path, corpus: Path, undisturbed: list[StepRecord], stage: int
) -> None:
    steps = moved(tmp_path, corpus, [2, 1, 2, 3], **zero(stage))
    assert [step.batch for step in steps] == [step.batch for step in undisturbed]
    assert max(abs(a.loss - b.loss) for a, b in zip(steps, undisturbed, strict=True)) < TOLERANCE


@pytest.mark.parametrize(
    ("stage", "offload", "bf16"),
    [(2, "none", False), (2, "optimizer", True), (3, "none", False), (3, "all", True)],
)
def test_a_gradient_that_is_not_finite_costs_one_step_and_no_more(
    stage: int, offload: Offload, bf16: bool
) -> None:
    norms, weights = in_trials(partial(_steps, stage, offload, bf16, (1.0, float("nan"), 1.0)), 1)[0]
    assert norms[0] < float("inf") and norms[1] == float("inf") and norms[2] < float("inf")
    assert weights[0] == weights[1] != weights[2]


def _steps(
    stage: int, offload: Offload, bf16: bool, factors: tuple[float, ...], rank: int
) -> tuple[list[float], list[float]]:
    """Gradient norm, and a sum over all weights, after each step of two backward passes of factor * loss."""
    os.environ["LOCAL_RANK"] = str(rank)
    config = parse_config(
        {
            "parallel": {"strategy": "deepspeed", "zero_stage": stage, "offload": offload},
            "train": {"bf16": bf16, "learning_rate": 0.01},
        }
    )
    with tempfile.TemporaryDirectory() as folder, joined(0, 1, f"file://{folder}/rendezvous", 1) as world:
        shape = LlamaConfig(vocab_size=97, **{key: ODD[key] for key in ODD if key != "model_type"})
        sharded = spread(building.skeleton(shape), config, world)
        sharded.fill(building.random_weights(shape, 0))
        norms, weights = [], []
        for factor in factors:
            for last in (False, True):
                logits = sharded.model(input_ids=torch.arange(40)[None], use_cache=False).logits
                sharded.backward(logits.float().square().mean() * factor, last=last)
            norms.append(sharded.step(0.01))
            weights.append(
                sum(float(weight.double().sum()) for weight in sharded.gathered(torch.float32).values())
            )
        return norms, weights
