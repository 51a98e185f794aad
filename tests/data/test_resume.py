"""Killed at any moment and started again, a corpus comes out with the same bytes."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.data.corpora import raw_samples, write_json, write_lines
from tests.data.jobs import whole_job
from trainer.data.parts import FileParts
from trainer.data.pipeline import Progress, prepare

# Of 67 file events with one worker (tests/data/killed.py with moment 0 counts them), seeded.
MOMENTS = sorted(random.Random(5).sample(range(1, 66), 14))


def make_inputs(folder: Path) -> None:
    samples = raw_samples(1800)
    write_json(folder / "a.json", samples[:1000])
    write_lines(folder / "b.jsonl", samples[1000:])


def outcome(folder: Path) -> dict[str, bytes]:
    """What is there in the end, the name of the folder (which rejections give) apart."""
    assert not (folder / "train.jsonl.work").exists()
    here = str(folder).encode()
    files = [path for path in folder.iterdir() if path.name not in ("a.json", "b.jsonl")]
    return {
        path.name: path.read_bytes().replace(here, b"HERE") for path in files if not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("reference")
    make_inputs(folder)
    prepare(whole_job(folder), 1)
    return _without_keys(outcome(folder))


def _without_keys(files: dict[str, bytes]) -> dict[str, bytes]:
    """The key and the hash of the rejected file hold the folder's name."""
    import json

    manifest = json.loads(files["train.manifest.json"])
    manifest["key"] = manifest["rejected"]["sha256"] = ""
    return {**files, "train.manifest.json": json.dumps(manifest).encode()}


def killed(folder: Path, moment: int, workers: int) -> int:
    command = [sys.executable, "-m", "tests.data.killed", str(moment), str(workers), str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=60)
    return done.returncode


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_the_rerun_gives_the_same_bytes(
    tmp_path: Path, reference: dict[str, bytes], moment: int
) -> None:
    make_inputs(tmp_path)
    assert killed(tmp_path, moment, 1) == -signal.SIGKILL
    prepare(whole_job(tmp_path), 1)
    assert _without_keys(outcome(tmp_path)) == reference


@pytest.mark.parametrize("moment", [3, 9, 14, 20, 40, 48])
def test_after_a_kill_among_workers_the_rerun_gives_the_same_bytes(
    tmp_path: Path, reference: dict[str, bytes], moment: int
) -> None:
    """Whoever comes to the moment first dies: the parent (SIGKILL) or a worker (and the parent says so, exit 1)."""
    make_inputs(tmp_path)
    assert killed(tmp_path, moment, 3) in (-signal.SIGKILL, 1)
    prepare(whole_job(tmp_path), 2)
    assert _without_keys(outcome(tmp_path)) == reference


def test_a_corpus_killed_again_and_again_gets_on(tmp_path: Path, reference: dict[str, bytes]) -> None:
    make_inputs(tmp_path)
    lives = 1
    while killed(tmp_path, 9 * lives, 1):
        lives += 1
        assert lives < 10
    assert lives > 4
    assert _without_keys(outcome(tmp_path)) == reference


def test_parts_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    assert killed(tmp_path, 30, 1) == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.part")}
    assert before
    seen: list[Progress] = []
    kept: dict[Path, int] = {}

    def watch(progress: Progress) -> None:
        seen.append(progress)
        kept.update({path: path.stat().st_mtime_ns for path in before if path.exists()})

    prepare(whole_job(tmp_path), 1, watch)
    assert kept == before
    assert seen[-1].samples < 1800


def test_a_damaged_part_is_found_and_made_again(tmp_path: Path, reference: dict[str, bytes]) -> None:
    from trainer.errors import CorruptObject

    make_inputs(tmp_path)
    assert killed(tmp_path, 30, 1) == -signal.SIGKILL
    part = min(tmp_path.rglob("*.part"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CorruptObject) as caught:
        prepare(whole_job(tmp_path), 1)
    assert "same command again" in str(caught.value.hint)
    prepare(whole_job(tmp_path), 1)
    assert _without_keys(outcome(tmp_path)) == reference


def test_a_finished_corpus_is_left_alone_until_something_changes(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    first = prepare(whole_job(tmp_path), 1)
    written = (tmp_path / "train.jsonl").stat().st_ino
    assert prepare(whole_job(tmp_path), 2) == first
    assert (tmp_path / "train.jsonl").stat().st_ino == written
    (tmp_path / "train.jsonl").write_text("edited")
    assert prepare(whole_job(tmp_path), 1) == first
    assert (tmp_path / "train.jsonl").stat().st_size == first["output"]["bytes"]
    write_lines(tmp_path / "b.jsonl", raw_samples(30, seed=9))
    again = prepare(whole_job(tmp_path), 1)
    assert again is not None and again["inputs"][1]["samples"] == 30


def test_shares_in_one_folder_give_what_one_machine_gives(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    from dataclasses import replace

    make_inputs(tmp_path)
    job = whole_job(tmp_path)
    for index in (2, 0):
        assert prepare(replace(job, shard=(index, 3)), 1) is None
        assert not (tmp_path / "train.jsonl").exists()
    assert prepare(replace(job, shard=(1, 3)), 1) is not None
    assert _without_keys(outcome(tmp_path)) == reference


def test_the_last_part_says_that_a_file_is_whole(tmp_path: Path) -> None:
    parts = FileParts(tmp_path / "key")
    assert parts.complete() is None and not parts.all_there()
    parts.close(0)
    assert parts.complete() == 0 and parts.all_there()
    parts.close(2)
    assert not parts.all_there()


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """Left alone, they would wait for work for ever: each holds the others' pipes open."""
    import os

    import psutil

    make_inputs(tmp_path)
    command = [sys.executable, "-m", "tests.data.killed", "30", "2", str(tmp_path)]
    parent = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.DEVNULL)
    parent.wait(60)
    left = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == parent.pid:
                left.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    _, alive = psutil.wait_procs(left, timeout=20)
    assert alive == []


def test_with_as_many_files_as_shares_each_reads_its_own_only(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    from dataclasses import replace

    make_inputs(tmp_path)
    job = whole_job(tmp_path)
    seen: list[Progress] = []
    assert prepare(replace(job, shard=(1, 2)), 1, seen.append) is None
    assert seen[-1].samples == 800
    assert prepare(replace(job, shard=(0, 2)), 1, seen.append) is not None
    assert seen[-1].samples == 1000
    assert _without_keys(outcome(tmp_path)) == reference


def test_shares_at_the_same_time_agree_on_the_end(tmp_path: Path, reference: dict[str, bytes]) -> None:
    """Three processes in one folder; one or more of them find all parts there and write the output."""
    make_inputs(tmp_path)
    script = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from tests.data.jobs import whole_job; from trainer.data.pipeline import prepare\n"
        "done = prepare(replace(whole_job(Path(sys.argv[1])), shard=(int(sys.argv[2]), 3)), 1)\n"
        "print('done' if done else 'waiting')"
    )
    shares = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), str(index)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    said = [share.communicate(timeout=60)[0].strip() for share in shares]
    assert [share.returncode for share in shares] == [0, 0, 0]
    assert "done" in said
    prepare(whole_job(tmp_path), 1)
    assert _without_keys(outcome(tmp_path)) == reference


@pytest.mark.parametrize("workers", [1, 2])
def test_on_a_full_disk_one_error_says_where_and_a_rerun_goes_on(
    tmp_path: Path, reference: dict[str, bytes], workers: int
) -> None:
    make_inputs(tmp_path)
    limit = 800_000  # bytes of a file: parts come out, the output does not

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    run = subprocess.run(
        [sys.executable, "-m", "tests.data.killed", "0", str(workers), str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        preexec_fn=limited,
        timeout=60,
    )
    assert run.returncode == 1 and f"VlaunchError: {tmp_path}: file too large" in run.stderr
    assert not (tmp_path / "train.jsonl").exists()
    prepare(whole_job(tmp_path), workers)
    assert _without_keys(outcome(tmp_path)) == reference
