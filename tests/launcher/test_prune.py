"""`vlaunch runs prune`: what it deletes, what it never deletes, and whom it asks."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from launcher.clouds.local import LocalCloud
from launcher.clouds.local_keeper import LOCK
from tests.artifacts.runs import Disk, begin, checkpoint, steps
from trainer.artifacts.fencing import Lease
from trainer.artifacts.journal import Journal
from trainer.artifacts.layout import CONFIG, EXPORT_MANIFEST
from trainer.artifacts.local import LocalStore
from trainer.artifacts.manifest import fetch_verified, put_blob
from trainer.artifacts.metrics import EvalRecord, MetricsWriter
from trainer.artifacts.validity import valid_manifests
from trainer.config import parse_config
from trainer.errors import Fenced

Vlaunch = Callable[..., Any]


class Run:
    """A run of a few checkpoints in a store of its own; its journal is an hour old."""

    def __init__(self, folder: Path, name: str = "tiny", **checkpoint: object) -> None:
        self.name, self.uri = name, (folder / "store").as_uri()
        self.store = LocalStore(folder / "store/runs" / name)
        self.disk = Disk(folder)
        self.store.put_new(CONFIG, parse_config({"checkpoint": checkpoint}).encode())
        self._said = 0

    def say(self, kind: str, age: timedelta = timedelta(hours=1), attempt: int = 1, **data: object) -> None:
        self._said += 1
        moment = datetime.now(UTC) - age + timedelta(milliseconds=self._said)
        writer = "launcher" if kind in ("ended", "stopping") else "box"
        Journal(self.store, attempt, writer, now=lambda: moment).record(kind, **data)

    def save(self, *wanted: int) -> Lease:
        lease = begin(self.store)
        for step in wanted:
            lease.commit(checkpoint(lease, self.disk, step))
        return lease


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Stopped after five saves, of which nothing was collected; each has two files of 10 bytes."""
    run = Run(tmp_path)
    run.save(10, 20, 30, 40, 50)
    run.say("started", epoch=1, resumed_from=0)
    run.say("training", step=1)
    run.say("ended", reason="stopped")
    return run


def prune(vlaunch: Vlaunch, run: Run, *more: str) -> Any:
    return vlaunch("runs", "prune", *more, "--store", run.uri)


def objects(run: Run) -> dict[str, int]:
    return {entry.key: entry.size for entry in run.store.list()}


def test_a_dry_run_says_how_many_files_and_bytes_would_go_and_deletes_none(
    vlaunch: Vlaunch, run: Run
) -> None:
    before = objects(run)
    told = json.loads(prune(vlaunch, run, "--dry-run", "--json").out)
    assert objects(run) == before
    assert told["pruned"] is False
    (row,) = told["runs"]
    assert row["kept"] == [40, 50] and row["deleted"] == [10, 20, 30]
    assert "would go" in prune(vlaunch, run, "--dry-run").out

    done = json.loads(prune(vlaunch, run, "--yes", "--json").out)
    after = objects(run)
    gone = {key: size for key, size in before.items() if key not in after}
    assert done["pruned"] is True and done["files"] == told["files"] == len(gone)
    blobs = sum(size for key, size in gone.items() if key.startswith("blob/"))
    assert done["bytes"] == told["bytes"] == blobs


def test_what_is_kept_can_be_restored_byte_for_byte(vlaunch: Vlaunch, run: Run, tmp_path: Path) -> None:
    assert prune(vlaunch, run, "--yes", "--keep-last", "1", "--keep-every", "20").code == 0
    assert steps(run.store) == [50, 40, 20]
    for manifest in valid_manifests(run.store):
        for file in manifest.files:
            fetch_verified(run.store, file, tmp_path / "restored")


def test_without_a_terminal_nothing_is_deleted_unless_it_was_agreed_to(vlaunch: Vlaunch, run: Run) -> None:
    before = objects(run)
    asked = prune(vlaunch, run)
    assert asked.code == 2 and "--yes agrees beforehand" in asked.err
    assert objects(run) == before


def test_what_has_nothing_to_delete_is_left_without_a_trace(vlaunch: Vlaunch, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(10)
    run.say("ended", reason="stopped")
    before = objects(run)
    assert "nothing to delete" in prune(vlaunch, run, "--yes").out
    assert objects(run) == before


def test_a_run_that_somebody_looks_after_is_refused_and_left_out_of_all(vlaunch: Vlaunch, run: Run) -> None:
    before = objects(run)
    home = LocalCloud().home(f"{run.uri}/runs/{run.name}")
    home.mkdir(parents=True)
    with (home / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        named = prune(vlaunch, run, run.name, "--yes")
        assert named.code == 3 and "running already" in named.err
        everything = prune(vlaunch, run, "--yes", "--json")
        assert everything.code == 0 and json.loads(everything.out)["skipped"][0]["run"] == run.name
    assert objects(run) == before


def test_a_run_that_gave_a_sign_of_life_a_moment_ago_is_refused(vlaunch: Vlaunch, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(10, 20, 30)
    run.say("started", epoch=1, resumed_from=0)
    run.say("training", timedelta(minutes=1), step=1)
    before = objects(run)
    refused = prune(vlaunch, run, run.name, "--yes")
    assert refused.code == 3 and "sign of life" in refused.err and f"vlaunch stop {run.name}" in refused.err
    assert objects(run) == before


def test_a_box_that_nobody_knew_of_is_fenced_and_loses_nothing_durable(
    vlaunch: Vlaunch, tmp_path: Path
) -> None:
    """Its journal is silent for an hour, so it counts as dead; in truth its machine was suspended."""
    run = Run(tmp_path)
    lease = run.save(10, 20, 30)
    run.say("training", step=1)
    late = checkpoint(lease, run.disk, 40)
    assert prune(vlaunch, run, "--yes").code == 0
    with pytest.raises(Fenced):
        lease.commit(late)
    assert steps(run.store) == [30, 20]


def test_every_checkpoint_of_a_finished_run_may_go_and_its_corpus_and_model_stay(
    vlaunch: Vlaunch, run: Run, tmp_path: Path
) -> None:
    refused = prune(vlaunch, run, run.name, "--keep-last", "0", "--yes")
    assert refused.code == 2 and "without a checkpoint it would begin again" in refused.err
    corpus = put_blob(run.store, run.disk.files(60)[1])
    run.store.put("cache/corpus.json", json.dumps({"files": [corpus.blob]}).encode())
    run.store.put(EXPORT_MANIFEST, b"{}")
    run.say("finished", steps=50)

    assert prune(vlaunch, run, run.name, "--keep-last", "0", "--grace", "0", "--yes").code == 0
    assert steps(run.store) == []
    left = [entry.key for entry in run.store.list("blob/")]
    assert left == [corpus.key] and run.store.size(EXPORT_MANIFEST) == 2


def test_the_best_checkpoint_stays_where_the_run_keeps_it(vlaunch: Vlaunch, tmp_path: Path) -> None:
    run = Run(tmp_path, keep_best=True)
    lease = run.save(10, 20, 30, 40)
    writer = MetricsWriter(run.store, lease.epoch, 1, 0)
    writer.add(EvalRecord(0, float("nan"), 0.0))
    writer.flush()
    for step, loss in ((10, 2.0), (20, 1.5), (30, 1.5), (40, 1.9)):
        late = MetricsWriter(run.store, lease.epoch, 1, step)
        late.add(EvalRecord(step, loss, 0.0))
        late.flush()
    run.say("ended", reason="stopped")
    assert prune(vlaunch, run, "--yes", "--keep-last", "1").code == 0
    assert steps(run.store) == [40, 20]


def test_an_option_in_front_of_the_part_is_not_silently_ignored(vlaunch: Vlaunch, run: Run) -> None:
    told = vlaunch("runs", "--store", run.uri, "prune", "--yes")
    assert told.code == 2 and "--store belongs behind prune" in told.err
