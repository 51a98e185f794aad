"""Uploads beside training: held to a rate, never two at once, and a failure of one process ends them all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.artifacts.stores import MemoryStore
from tests.trainer.killing import Death, live
from tests.trainer.runs import create_run, write_corpus
from tests.trainer.test_exact_resume import numbers
from trainer.artifacts.journal import RunEvent, read_journal
from trainer.artifacts.local import LocalStore
from trainer.artifacts.manifest import put_blob
from trainer.artifacts.metrics import read_metrics
from trainer.artifacts.pace import Pace
from trainer.artifacts.store import open_store
from trainer.artifacts.validity import valid_manifests
from trainer.errors import StoreError
from trainer.parallel import joined
from trainer.shortage import in_trials
from trainer.uploading import Progress, Sent, Upload, first_problem


class Refusing(LocalStore):
    def put_file(self, key: str, path: Path) -> None:
        raise StoreError("this process may not write")


def one_of_two(folder: Path, slow: bool, rank: int) -> tuple[list[Sent], Progress]:
    """An upload of two processes: the first may take weeks for its megabyte, the second is refused at once."""
    store = (Refusing if rank == 1 else LocalStore)(folder / "store")
    path = folder / f"shard-{rank}"
    path.write_bytes(bytes([rank]) * 1_000_000)
    told = [Progress(0, 0)]
    with joined(rank, 2, f"file://{folder}/rendezvous", 1) as world:
        upload = Upload(world, Pace(1.0 if slow and rank == 0 else None))
        return upload.together(lambda: [path], partial(put_blob, store, epoch=1), told.append), told[-1]


def test_the_failure_of_one_process_ends_the_uploads_of_the_others_at_once(tmp_path: Path) -> None:
    for sent, progress in in_trials(partial(one_of_two, tmp_path, True), 2):
        assert [bool(one.problem) for one in sent] == [True, True]
        assert [one.called_off for one in sent] == [True, False]
        assert first_problem(sent) == "this process may not write"
        assert progress.total == 2_000_000


def test_a_process_that_was_faster_than_the_failure_has_its_files_there(tmp_path: Path) -> None:
    """They are nobody's: the collection takes them."""
    for sent, _ in in_trials(partial(one_of_two, tmp_path, False), 2):
        assert first_problem(sent) == "this process may not write"
        assert sent[0].called_off or sent[0].entries


def events(run: str, kind: str) -> list[RunEvent]:
    return [event for event in read_journal(open_store(run)) if event.kind == kind]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A corpus, and a run of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("calm")
    corpus, run = write_corpus(folder / "train.jsonl", 60), str(folder / "runs/calm")
    create_run(run, corpus, parallel__processes=2)
    assert not live(run, folder / "work", Death("never"))
    return corpus, run


def test_a_save_that_one_process_cannot_send_costs_nothing_that_was_durable(
    tmp_path: Path, calm: tuple[Path, str]
) -> None:
    corpus, whole = calm
    run = str(tmp_path / "runs/refused")
    create_run(run, corpus, parallel__processes=2)
    assert live(run, tmp_path / "work-1", Death("before", "manifest/", 2))
    before = [manifest.step for manifest in valid_manifests(open_store(run))]
    assert before == [2]
    assert not live(run, tmp_path / "work-2", Death("refused", "blob/", nth=1, rank=1))

    (failed,) = events(run, "save_failed")
    assert failed.data["error"] == "the store does not want this"
    later = [event.data["step"] for event in events(run, "checkpoint") if event.time > failed.time]
    assert later and later[0] > failed.data["step"] > before[0]
    assert numbers(run) == numbers(whole)


def test_a_store_that_is_slower_than_the_saves_is_given_one_at_a_time(
    tmp_path: Path, calm: tuple[Path, str]
) -> None:
    corpus, whole = calm
    run = str(tmp_path / "runs/slow")
    create_run(run, corpus, parallel__processes=2, checkpoint__upload_limit_mb_per_s=0.3)
    assert not live(run, tmp_path / "work", Death("never"))

    saves = [event.data for event in events(run, "checkpoint")]
    assert sum(save["skipped"] for save in saves) > 0 and len(saves) < 30
    for earlier, later in zip(saves, saves[1:], strict=False):
        assert later["taken_at"] >= earlier["durable_at"]
    # 120 kB may go at once; the rest of each process's share is held to 0.15 MB/s.
    assert all(save["upload_s"] >= (save["bytes"] / 2 - 120e3) / 0.15e6 for save in saves[:-1])
    assert "the store is slower than the saves" in (tmp_path / "work.log").read_text()
    assert numbers(run) == numbers(whole)


def test_every_step_says_what_was_durable_then_and_for_how_long(calm: tuple[Path, str]) -> None:
    steps = read_metrics(open_store(calm[1]))[0]
    durable = [step.durable_step for step in steps]
    assert durable == sorted(durable) and durable[0] == 0 and durable[-1] > 0
    for step in steps:
        assert (step.durable_age_s is None) == (step.durable_step == 0)
        assert step.durable_step <= step.step and (step.durable_age_s or 0.0) >= 0.0


def test_an_older_segment_of_metrics_is_read_without_what_was_durable() -> None:
    store = MemoryStore()
    line = (
        '{"step": 1, "loss": "0x1p0", "grad_norm": "0x1p0", "learning_rate": "0x1p0", "tokens": 1, "samples": 1,'
        ' "batch": "ab", "attempt": 1, "epoch": 1, "time": "0x1p0", "step_s": "0x1p0"}\n'
    )
    store.put_new("metrics/000000000001-000000000000-e00000001.jsonl", line.encode())
    (step,) = read_metrics(store)[0]
    assert (step.durable_step, step.durable_age_s) == (0, None)
