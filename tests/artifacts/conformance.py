"""What every store must do, as tests: whoever has a fixture `store` imports them all.

    from tests.artifacts.conformance import *  # noqa: F403

The store is a fresh one under a name that no test had before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from trainer.artifacts.store import Store
from trainer.errors import MissingKey, StoreError

__all__ = [
    "test_a_key_that_leaves_the_store_is_refused",
    "test_a_listing_shows_every_finished_write_and_no_deleted_object",
    "test_a_prefix_that_leaves_the_store_is_refused",
    "test_children_are_the_names_one_level_below",
    "test_files_come_back_as_they_were",
    "test_keys_sort_as_text_also_where_a_folder_and_a_file_begin_alike",
    "test_of_many_threads_that_create_one_key_exactly_one_wins",
    "test_put_replaces",
    "test_unusual_but_legal_keys",
    "test_what_is_created_first_stays",
    "test_what_is_not_there",
]

ODD = ["a b", "a+b", "a%2Fb", "ä/ö", "x=1&y=2", "#?", "~'()*!;:@,$[]", "0" * 255, "%", "a%", ".hidden", "..."]


def keys(store: Store, prefix: str = "", start_after: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix, start_after=start_after)]


def test_what_is_created_first_stays(store: Store) -> None:
    assert store.put_new("epoch/1", b"mine")
    assert store.put_new("epoch/1", b"mine"), "an own retry after a lost reply"
    assert not store.put_new("epoch/1", b"theirs")
    assert store.get("epoch/1") == b"mine" and store.size("epoch/1") == 4
    assert store.put_new("epoch/empty", b"") and not store.put_new("epoch/empty", b"x")
    assert store.get("epoch/empty") == b"" and store.size("epoch/empty") == 0


def test_put_replaces(store: Store) -> None:
    for data in (b"older", b"", b"newer"):
        store.put("hint", data)
        assert store.get("hint") == data and store.size("hint") == len(data)
    assert not store.put_new("hint", b"newest") and store.get("hint") == b"newer"


@pytest.mark.parametrize("size", [0, 1, 350_000])
def test_files_come_back_as_they_were(store: Store, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(size))
    store.put("export/weights", b"older")
    store.put_file("export/weights", source)
    store.get_file("export/weights", target)
    assert target.read_bytes() == source.read_bytes() == store.get("export/weights")
    assert store.size("export/weights") == size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_what_is_not_there(store: Store, tmp_path: Path) -> None:
    assert keys(store) == [] and store.children() == [] and store.size("a") is None
    store.delete("a/b")
    store.put("a/b", b"x")
    for key in ("a", "a/c", "a/b/c", "b"):
        with pytest.raises(MissingKey, match=f"has no {key}$"):
            store.get(key)
        with pytest.raises(MissingKey, match=f"has no {key}$"):
            store.get_file(key, tmp_path / "target")
        assert store.size(key) is None
        store.delete(key)
    assert not list(tmp_path.glob("target*"))
    assert store.get("a/b") == b"x"
    store.delete("a/b")
    assert keys(store) == [] and store.children() == []


def test_a_listing_shows_every_finished_write_and_no_deleted_object(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"xyz")
    made = {}
    for number in range(12):
        key = f"n/{number:02d}"
        (store.put_new, store.put, lambda k, _: store.put_file(k, tmp_path / "f"))[number % 3](key, b"xyz")
        made[key] = 3
        assert {entry.key: entry.size for entry in store.list("n/")} == made
    for key in sorted(made)[::2]:
        store.delete(key)
        del made[key]
        assert keys(store, "n/") == sorted(made)
    times = [entry.modified for entry in store.list()]
    assert max(times) - min(times) < 600, "all by one clock, in seconds"


def test_keys_sort_as_text_also_where_a_folder_and_a_file_begin_alike(store: Store) -> None:
    for key in ("a/b", "a.b", "a-b/c", "a0", "a/b.start"):
        store.put(key, b"")
    assert keys(store) == ["a-b/c", "a.b", "a/b", "a/b.start", "a0"]
    assert keys(store, start_after="a/b") == ["a/b.start", "a0"]
    assert keys(store, "a/b") == ["a/b", "a/b.start"] and keys(store, "a/b.") == ["a/b.start"]


def test_children_are_the_names_one_level_below(store: Store) -> None:
    for key in ("config.json", "runs/b/config.json", "runs/b/epoch/1", "runs/a/config.json", "runs.txt"):
        store.put(key, b"")
    assert store.children() == ["config.json", "runs", "runs.txt"]
    assert store.children("runs/") == ["a", "b"]
    assert store.children("runs/b/") == ["config.json", "epoch"]
    assert store.children("no/") == [] and store.children("runs/a/config.json/") == []


def test_unusual_but_legal_keys(store: Store) -> None:
    for key in ODD:
        store.put(f"odd/{key}", key.encode())
    assert keys(store, "odd/") == sorted(f"odd/{key}" for key in ODD)
    for key in ODD:
        assert store.get(f"odd/{key}") == key.encode() and store.size(f"odd/{key}") == len(key.encode())
        assert keys(store, f"odd/{key}")[:1] == [f"odd/{key}"]
        store.delete(f"odd/{key}")
    assert keys(store) == []


def test_of_many_threads_that_create_one_key_exactly_one_wins(store: Store) -> None:
    for number in range(8):
        won: list[bytes] = []

        def create(me: int, key: str = f"race/{number}", won: list[bytes] = won) -> None:
            data = b"%d" % me * 1000
            if store.put_new(key, data):
                won.append(data)

        together([partial(create, me) for me in range(8)])
        assert len(won) == 1 and store.get(f"race/{number}") == won[0]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\0b",
        "a\nb",
        "a\\b",
        ".tmp/x",
    ]
    + ["runs/a/.tmp/x", "x" * 256, "x/" * 600 + "x"],
)
def test_a_key_that_leaves_the_store_is_refused(store: Store, tmp_path: Path, key: str) -> None:
    (tmp_path / "x").write_bytes(b"outside")
    calls: list[Callable[[], object]] = [
        lambda: store.put_new(key, b""),
        lambda: store.put(key, b""),
        lambda: store.put_file(key, tmp_path / "x"),
        lambda: store.get(key),
        lambda: store.get_file(key, tmp_path / "y"),
        lambda: store.size(key),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="refused the key"):
            call()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x"]


@pytest.mark.parametrize("prefix", ["../", "/", "a/../", "a//", "../x"])
def test_a_prefix_that_leaves_the_store_is_refused(store: Store, prefix: str) -> None:
    for call in (lambda: keys(store, prefix), lambda: store.children(prefix)):
        with pytest.raises(StoreError, match="refused the prefix"):
            call()


def together(jobs: list[Callable[[], object]]) -> None:
    """All at once, as nearly as threads can; the first problem is raised."""
    start, problems = threading.Barrier(len(jobs)), []

    def run(job: Callable[[], object]) -> None:
        try:
            start.wait()
            job()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
