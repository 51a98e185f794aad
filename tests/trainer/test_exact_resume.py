"""A run that is killed again and again is, bit for bit, the run that was never killed.

Loss, gradient norm and learning rate of every step as hex floats, the conversations of every batch and the bytes
of the exported model are compared with an undisturbed run, for one process and for two, with dropout on.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.layout import CONFIG, EXPORT
from trainer.artifacts.manifest import hash_file
from trainer.artifacts.metrics import StepRecord, read_metrics
from trainer.artifacts.store import open_store

STEPS = 60
CONVERSATIONS = 150


def numbers(run: str) -> list[tuple[int, str, str, str, int, int, str]]:
    """Every number of every step that does not depend on when or where it was computed."""
    return [_exact(step) for step in read_metrics(open_store(run))[0]]


def _exact(step: StepRecord) -> tuple[int, str, str, str, int, int, str]:
    return (
        step.step,
        step.loss.hex(),
        step.grad_norm.hex(),
        step.learning_rate.hex(),
        step.tokens,
        step.samples,
        step.batch,
    )


def exported(run: Path) -> dict[str, str]:
    folder = run / EXPORT
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder / "train.jsonl", CONVERSATIONS), write_corpus(
        folder / "held-out.jsonl", 20, seed=1
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: tuple[Path, Path]) -> dict[int, Path]:
    """By number of processes, a run that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    runs = {}
    for processes in (1, 2):
        runs[processes] = folder / f"runs/whole-{processes}"
        create_run(str(runs[processes]), *corpus, parallel__processes=processes)
        assert not live(str(runs[processes]), folder / f"work-{processes}", Death("never"))
    return runs


# The machine is lost once in each of these places, in an order and at an nth time that a seed draws.
PLACES = (
    ("before", "epoch/"),
    ("after", "epoch/"),
    ("after", "metrics/"),
    ("staging", ""),
    ("before", "blob/"),
    ("after", "blob/"),
    ("before", "manifest/"),
    ("after", "manifest/"),
    ("before", "journal/"),
    ("later", ""),
    ("later", ""),
    ("later", ""),
    ("later", ""),
)
AT_THE_END = (
    Death("before", "export/"),
    Death("after", "export/", nth=2),
    Death("before", "export/manifest.json"),
    Death("after", "export/manifest.json"),
)


def deaths(seed: int) -> list[Death]:
    """Eighteen ends of machines; the first is lost while it prepares the corpus."""
    chance = random.Random(seed)
    drawn = chance.sample(PLACES, len(PLACES))
    lives = [Death(when, key, chance.randint(1, 2), chance.uniform(0.0, 0.08)) for when, key in drawn]
    return [Death("before", "cache/"), *lives, *AT_THE_END]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_run_killed_at_random_moments_equals_the_undisturbed_run(
    tmp_path: Path, corpus: tuple[Path, Path], undisturbed: dict[int, Path], processes: int, seed: int
) -> None:
    run = tmp_path / "runs/killed"
    create_run(str(run), *corpus, parallel__processes=processes)
    killed = sum(
        live(str(run), tmp_path / f"work-{number}", death)
        for number, death in enumerate([*deaths(seed), Death("never")])
    )

    assert killed == len(deaths(seed))
    assert numbers(str(run)) == numbers(str(undisturbed[processes]))
    assert exported(run) == exported(undisturbed[processes])


@pytest.mark.parametrize("processes", [1, 2])
def test_every_conversation_is_seen_exactly_once_per_epoch(
    undisturbed: dict[int, Path], processes: int
) -> None:
    steps = read_metrics(open_store(str(undisturbed[processes])))[0]

    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    # The first epoch ends with a step, at which each of the corpus's conversations has been counted once.
    assert CONVERSATIONS in {step.samples for step in steps}
    assert steps[-1].samples > CONVERSATIONS


def test_the_comparison_can_fail_when_random_state_is_not_restored(
    tmp_path: Path, corpus: tuple[Path, Path], undisturbed: dict[int, Path]
) -> None:
    run = tmp_path / "runs/forgetful"
    create_run(str(run), *corpus)
    assert live(str(run), tmp_path / "work-1", Death("after", "manifest/", 3))
    assert not live(str(run), tmp_path / "work-2", Death("never"), forget_random_state=True)

    differ = [a[0] for a, b in zip(numbers(str(run)), numbers(str(undisturbed[1])), strict=True) if a != b]

    assert differ and differ[0] > 2
    assert differ == list(range(differ[0], STEPS + 1))


def test_a_checkpoint_of_two_processes_continues_on_one_with_the_same_samples(
    tmp_path: Path, corpus: tuple[Path, Path]
) -> None:
    """Dropout off: other sums, but the same batches and nearly the same numbers."""
    whole, moved = tmp_path / "runs/whole", tmp_path / "runs/moved"
    for run in (whole, moved):
        create_run(str(run), *corpus, parallel__processes=2, model__dropout=0.0)
    assert not live(str(whole), tmp_path / "work-whole", Death("never"))
    assert live(str(moved), tmp_path / "work-two", Death("after", "manifest/", 3))
    config = moved / CONFIG
    config.write_text(config.read_text().replace('"processes": 2', '"processes": 1'))
    assert not live(str(moved), tmp_path / "work-one", Death("never"))

    steps, other = (read_metrics(open_store(str(run)))[0] for run in (whole, moved))

    assert [step.batch for step in steps] == [step.batch for step in other]
    assert max(abs(a.loss - b.loss) for a, b in zip(steps, other, strict=True)) < 1e-5
    assert "not bit-exact" in (tmp_path / "work-one.log").read_text()
