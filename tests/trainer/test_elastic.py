"""A run continues on another number of processes: the same conversations in the same order, nearly the same numbers.

Dropout is off. Sums are formed in another order, so the comparison is a tolerance, and the log says so. A global
batch that no number of processes divides evenly is no obstacle: a process that has run out of rows takes part with
an empty micro-batch (trainer/sampler.py), so no size is refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.journal import read_journal
from trainer.artifacts.layout import CONFIG
from trainer.artifacts.metrics import StepRecord, read_metrics
from trainer.artifacts.store import open_store

# The largest difference of a loss that another order of float32 sums makes here is some 1e-6.
TOLERANCE = 1e-5


def start(folder: Path, corpus: Path, processes: int, **settings: object) -> Path:
    run = folder / "runs/elastic"
    create_run(
        str(run), corpus, parallel__processes=processes, model__dropout=0.0, train__max_steps=24, **settings
    )
    return run


def move(run: Path, processes: int) -> None:
    """The next machine has another number of GPUs."""
    config = json.loads((run / CONFIG).read_text())
    config["parallel"]["processes"] = processes
    (run / CONFIG).write_text(json.dumps(config))


def lived(folder: Path, corpus: Path, sizes: list[int], **settings: object) -> tuple[Path, list[StepRecord]]:
    """A run whose machines have these numbers of processes; all but the last machine are lost."""
    run = start(folder, corpus, sizes[0], **settings)
    for number, size in enumerate(sizes):
        move(run, size)
        death = Death("never") if number == len(sizes) - 1 else Death("after", "manifest/")
        assert live(str(run), folder / f"work-{number}", death) == (death.when != "never")
    return run, read_metrics(open_store(str(run)))[0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "train.jsonl", 60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> list[StepRecord]:
    """One process from the first to the last step."""
    return lived(tmp_path_factory.mktemp("whole"), corpus, [1])[1]


@pytest.mark.parametrize("sizes", [[2, 1, 2], [4, 2], [1, 3, 4]], ids=str)
def test_another_number_of_processes_sees_the_same_samples_and_nearly_the_same_losses(
    tmp_path: Path, corpus: Path, whole: list[StepRecord], sizes: list[int]
) -> None:
    run, steps = lived(tmp_path, corpus, sizes)

    assert [
        event.data["world_size"] for event in read_journal(open_store(str(run))) if event.kind == "started"
    ] == sizes
    assert [step.batch for step in steps] == [step.batch for step in whole]
    assert [step.samples for step in steps] == [step.samples for step in whole]
    assert max(abs(a.loss - b.loss) for a, b in zip(steps, whole, strict=True)) < TOLERANCE
    for number in range(1, len(sizes)):
        assert "not bit-exact" in (tmp_path / f"work-{number}.log").read_text()


def test_a_batch_that_the_processes_do_not_divide_stays_whole(tmp_path: Path, corpus: Path) -> None:
    """Five rows on three processes, two rows at a time."""
    settings = {"train__global_batch_size": 5, "train__per_device_train_batch_size": 2}
    one = lived(tmp_path / "one", corpus, [1], **settings)[1]
    three = lived(tmp_path / "three", corpus, [3], **settings)[1]
    assert [step.batch for step in three] == [step.batch for step in one]
    assert max(abs(a.loss - b.loss) for a, b in zip(three, one, strict=True)) < TOLERANCE


def test_weights_that_live_in_host_memory_give_the_same_numbers(tmp_path: Path, corpus: Path) -> None:
    """FSDP2's CPU offload changes where shards wait, not what is computed: bit for bit."""
    here = lived(tmp_path / "here", corpus, [2])[1]
    there = lived(tmp_path / "there", corpus, [2], parallel__offload="all")[1]
    assert [step.loss.hex() for step in there] == [step.loss.hex() for step in here]


def test_recomputed_activations_give_the_same_numbers(tmp_path: Path, corpus: Path) -> None:
    kept = lived(tmp_path / "kept", corpus, [2])[1]
    recomputed = lived(tmp_path / "recomputed", corpus, [2], train__gradient_checkpointing=True)[1]
    assert [step.loss.hex() for step in recomputed] == [step.loss.hex() for step in kept]
