"""A store that fills up costs durability, never training: it goes on, says so, and recovers with the space."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trainer.killing import Death, begin, live
from tests.trainer.runs import create_run, write_corpus
from trainer.artifacts.journal import read_journal
from trainer.artifacts.metrics import read_metrics
from trainer.artifacts.store import open_store

PATIENCE_S = 60.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def test_training_goes_on_while_the_store_is_full_and_is_durable_again_when_there_is_space(
    small_disk: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "train.jsonl")
    calm, full = str(tmp_path / "runs/calm"), str(small_disk / "runs/full")
    create_run(calm, corpus, train__max_steps=400)
    assert not live(calm, tmp_path / "work-calm", Death("never"))
    create_run(full, corpus, train__max_steps=400)
    log = tmp_path / "work-full.log"
    run = begin(full, tmp_path / "work-full", Death("never"))
    store = open_store(full)

    until(lambda: any(event.kind == "checkpoint" for event in read_journal(store)))
    filler = small_disk / "filler"
    with filler.open("wb") as out:
        try:
            while True:
                out.write(b"x" * 65536)
                out.flush()
        except OSError:
            pass
    until(lambda: "nothing is durable since step" in log.read_text())
    steps_then = len(log.read_text())
    until(lambda: len(log.read_text()) > steps_then)
    filler.unlink()
    run.join(PATIENCE_S)

    assert run.exitcode == 0
    assert "the store works again: durable at step" in log.read_text()
    numbers = [(s.step, s.loss.hex(), s.batch) for s in read_metrics(store)[0]]
    assert numbers == [(s.step, s.loss.hex(), s.batch) for s in read_metrics(open_store(calm))[0]]


def test_a_read_only_store_is_refused_with_its_path_and_what_to_do(small_disk: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "train.jsonl", 20)
    run = str(small_disk / "runs/frozen")
    create_run(run, corpus)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    command = [sys.executable, "-m", "trainer", "--run", run, "--workdir", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"VLAUNCH_CLOUD": "none"})

    assert done.returncode == 1
    assert str(small_disk) in done.stderr and "the file system is mounted read-only" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
