"""Corpora in buckets: the same bytes as from files here, whole objects, the manifest last, kills that cost little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.conftest import Bucket, bucket, gcs, gcs_server, s3, s3_server  # noqa: F401
from tests.artifacts.stores import MemoryStore
from tests.conftest import REPOSITORY
from tests.data import corpora
from trainer.artifacts.bucket import BucketStore
from trainer.artifacts.store import Entry
from trainer.data.buckets import Hand, at_hand
from trainer.errors import DataError, NotReady

Vlaunch = Callable[..., Any]


@pytest.fixture
def store(bucket: Bucket, tmp_path: Path) -> BucketStore:  # noqa: F811
    """A prefix with raw/a.json, raw/b.jsonl.zst and questions.jsonl in it; copies of them are in tmp_path."""
    made = bucket()
    corpora.write_json(tmp_path / "a.json", corpora.raw_samples(40))
    corpora.write_lines(tmp_path / "b.jsonl.zst", corpora.raw_samples(40, seed=2))
    (tmp_path / "questions.jsonl").write_text(
        '{"question_id": 1, "turns": ["What is nowhere in this corpus?"]}\n'
    )
    for name in ("a.json", "b.jsonl.zst"):
        made.put_file(f"raw/{name}", tmp_path / name)
    made.put_file("questions.jsonl", tmp_path / "questions.jsonl")
    return made


def copies(home: Path) -> list[Path]:
    return [path for path in (home / "cache").rglob("*") if path.is_file()]


def test_prepare_reads_and_writes_buckets_and_leaves_nothing_here(
    vlaunch: Vlaunch,
    store: BucketStore,
    tmp_path: Path,
    isolated: Path,
) -> None:
    more = ["--max-length", 300, "--workers", 1]
    here = [tmp_path / "a.json", tmp_path / "b.jsonl.zst", "--against", tmp_path / "questions.jsonl"]
    there = [f"{store.uri}/raw/*", "--against", f"{store.uri}/questions.jsonl"]
    vlaunch(
        "data", "prepare", *here, "--to", tmp_path / "train.jsonl", "--rejected", tmp_path / "no.jsonl", *more
    )
    to = ["--to", f"{store.uri}/out/train.jsonl", "--rejected", f"{store.uri}/out/no.jsonl"]
    ran = vlaunch("data", "prepare", *there, *to, *more, "--json")
    assert ran.code == 0, ran.err
    assert store.get("out/train.jsonl") == (tmp_path / "train.jsonl").read_bytes()
    manifest = json.loads(store.get("out/train.manifest.json"))
    assert ran.json["manifest"] == manifest
    assert [each["file"] for each in manifest["inputs"]] == [
        f"{store.uri}/raw/a.json",
        f"{store.uri}/raw/b.jsonl.zst",
    ]
    rejected = [json.loads(line) for line in store.get("out/no.jsonl").splitlines()]
    assert {entry["file"] for entry in rejected if "file" in entry} <= {
        each["file"] for each in manifest["inputs"]
    }
    assert f"wrote {store.uri}/out/train.jsonl" in ran.err
    assert not copies(isolated)


@pytest.mark.parametrize("step", ["merge", "clean", "filter", "split", "dedupe", "convert", "sample"])
def test_each_step_alone_goes_from_bucket_to_bucket(
    vlaunch: Vlaunch, store: BucketStore, step: str, tmp_path: Path
) -> None:
    ran = vlaunch("data", step, f"{store.uri}/raw/a.json", "--to", f"{store.uri}/out/{step}.jsonl.gz")
    assert ran.code == 0, ran.err
    vlaunch("data", step, tmp_path / "a.json", "--to", tmp_path / "here.jsonl.gz")
    assert store.get(f"out/{step}.jsonl.gz") == (tmp_path / "here.jsonl.gz").read_bytes()


def test_what_is_looked_at_in_a_bucket_is_called_by_its_uri(vlaunch: Vlaunch, store: BucketStore) -> None:
    vlaunch("data", "merge", f"{store.uri}/raw/a.json", "--to", f"{store.uri}/out/all.jsonl")
    ran = vlaunch(
        "data", "stats", f"{store.uri}/out/all.jsonl", "--png", f"{store.uri}/out/all.png", "--json"
    )
    assert ran.json["files"][0]["path"] == f"{store.uri}/out/all.jsonl"
    assert {drop["file"] for drop in ran.json["drops"]} == {f"{store.uri}/out/all.jsonl"}
    assert store.get("out/all.png").startswith(b"\x89PNG")
    assert vlaunch("data", "inspect", f"{store.uri}/out/all.jsonl").code == 0
    sides = ["--to", f"{store.uri}/out/train.jsonl", "--test", f"{store.uri}/out/test.jsonl"]
    ran = vlaunch("data", "split-train-test", f"{store.uri}/out/all.jsonl", *sides, "--share", 0.3)
    assert ran.out.split() == [sides[1], sides[3]]
    assert store.size("out/train.jsonl") and store.size("out/test.jsonl")


def test_what_is_not_there_is_one_clear_error(vlaunch: Vlaunch, store: BucketStore, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    ran = vlaunch("data", "merge", f"{store.uri}/raw/none.json", "--to", out)
    assert ran.code == 2 and f"there is no object {store.uri}/raw/none.json" in ran.err
    ran = vlaunch("data", "merge", f"{store.uri}/raw/*.parquet", "--to", out)
    assert ran.code == 2 and "there is no object" in ran.err
    ran = vlaunch("data", "merge", f"{store.uri}/*.zst", "--to", out)  # there is one, in a folder below
    assert ran.code == 2 and "there is no object" in ran.err
    scheme = store.uri.partition("://")[0]
    ran = vlaunch("data", "merge", f"{scheme}://no-such-bucket-at-all/a.json", "--to", out)
    assert ran.code in (1, 3) and "no-such-bucket-at-all" in ran.err and "Traceback" not in ran.err
    ran = vlaunch("data", "merge", tmp_path / "a.json", "--to", f"{store.uri}/out/")
    assert ran.code == 2 and "names no object" in ran.err
    ran = vlaunch("data", "merge", tmp_path / "a.json", "--to", f"{store.uri}/o.jsonl", "--shard", "0/2")
    assert ran.code == 2 and "mount the bucket" in ran.err
    ran = vlaunch("data", "merge", f"{store.uri}/raw/*", "--to", f"{store.uri}/raw/a.json")
    assert ran.code == 2 and f"{store.uri}/raw/a.json is an input as well" in ran.err
    assert not out.exists()


def test_a_broken_object_is_named_by_its_uri_and_place(vlaunch: Vlaunch, store: BucketStore) -> None:
    store.put("raw/cut.jsonl", b'{}\n{"conversations": [\n')
    ran = vlaunch("data", "merge", f"{store.uri}/raw/cut.jsonl", "--to", f"{store.uri}/out.jsonl")
    assert ran.code == 2 and f"{store.uri}/raw/cut.jsonl: line 2, column 20" in ran.err
    assert store.size("out.jsonl") is None


def test_after_a_kill_nothing_is_fetched_or_made_again(
    store: BucketStore, isolated: Path, tmp_path: Path
) -> None:
    """Killed where the output is about to go up: the object appears at the second try, with the manifest after it."""
    line = [
        "data",
        "prepare",
        f"{store.uri}/raw/*",
        "--to",
        f"{store.uri}/out/train.jsonl",
        "--max-length",
        "300",
    ]
    killer = f"""
import os, signal, sys
from trainer.artifacts.bucket import BucketStore
from launcher.cli import main
BucketStore.put_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main({line!r})
"""
    store.put("out/train.manifest.json", b"of an earlier corpus")
    done = subprocess.run(
        [sys.executable, "-c", killer], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -9
    # Nobody may take the manifest of what was there before for that of what comes.
    assert store.size("out/train.manifest.json") is None and store.size("out/train.jsonl") is None
    before = {path: os.stat(path).st_mtime_ns for path in copies(isolated)}
    assert {"a.json", "b.jsonl.zst", "train.jsonl"} <= {path.name for path in before}
    watched = f"""
import sys
from trainer.artifacts.bucket import BucketStore
from launcher.cli import main
BucketStore.get_file = lambda *_: sys.exit("fetched again")
sys.exit(main({line!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", watched], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(store.get("out/train.manifest.json"))["output"]["bytes"] == store.size(
        "out/train.jsonl"
    )
    assert not copies(isolated)


def test_an_object_that_was_replaced_is_fetched_anew(store: BucketStore, tmp_path: Path) -> None:
    with pytest.raises(DataError), at_hand(tmp_path / "hand") as hand:
        (first,) = hand.inputs([f"{store.uri}/questions.jsonl"])
        raise DataError("something else")
    assert first.exists()
    store.put("questions.jsonl", b"new")
    with at_hand(tmp_path / "hand") as hand:
        (second,) = hand.inputs([f"{store.uri}/questions.jsonl"])
        assert second.read_bytes() == b"new" and second != first
    assert not (tmp_path / "hand").exists()


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    class Huge(MemoryStore):
        def list(self, prefix: str = "", *, start_after: str = "") -> Any:
            return iter([Entry(prefix, 10**18, 1.0)])

    hand = Hand(tmp_path / "hand", open_store=Huge)
    with pytest.raises(NotReady, match="take 1,000,000,000.0 GB"):
        hand.inputs(["s3://huge/all.jsonl"])
    assert not list((tmp_path / "hand").rglob("*.jsonl"))
