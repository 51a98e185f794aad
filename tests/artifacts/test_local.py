"""The directory store: atomic, create-if-absent between processes, and clear about what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.artifacts.stores import MemoryStore
from trainer.artifacts.local import LocalStore
from trainer.artifacts.store import join_uri, open_store
from trainer.errors import StoreError, UsageError


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def everything(store: LocalStore) -> list[str]:
    return [entry.key for entry in store.list()]


def test_put_replaces_and_files_come_back_as_they_were(store: LocalStore, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(3_000_000))
    store.put("export/weights", b"older")
    store.put_file("export/weights", source)
    store.get_file("export/weights", target)
    assert target.read_bytes() == source.read_bytes() == store.get("export/weights")
    store.put("export/weights", b"")
    assert store.get("export/weights") == b"" and store.size("export/weights") == 0


def test_looking_creates_nothing_and_an_empty_folder_is_no_key(store: LocalStore) -> None:
    assert everything(store) == [] and store.children() == [] and store.size("a") is None
    assert not store.root.exists()
    store.put("a/b", b"x")
    store.delete("a/b")
    assert everything(store) == [] and store.children() == []


names = st.text(alphabet="ab.-/0~ é", min_size=1, max_size=6)


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(keys=st.sets(names, max_size=8), prefix=st.one_of(st.just(""), names), start_after=names)
def test_listings_are_those_of_an_object_store(
    tmp_path_factory: pytest.TempPathFactory, keys: set[str], prefix: str, start_after: str
) -> None:
    local, memory = LocalStore(tmp_path_factory.mktemp("store")), MemoryStore()
    for key in sorted(keys, key=len):
        try:
            local.put(key, key.encode())
        except StoreError:
            continue  # not a key; or "a" is there, and a directory cannot hold "a/b" as well
        memory.put(key, key.encode())
    try:
        listed = [(entry.key, entry.size) for entry in local.list(prefix, start_after=start_after)]
    except StoreError:
        assert {".", "..", ""} & set(prefix.removesuffix("/").split("/"))
        return
    assert listed == [(entry.key, entry.size) for entry in memory.list(prefix, start_after=start_after)]
    assert local.children(prefix[: prefix.rfind("/") + 1]) == memory.children(prefix[: prefix.rfind("/") + 1])


def test_unfinished_files_are_in_no_listing_of_the_store_or_of_one_above(tmp_path: Path) -> None:
    above, run = LocalStore(tmp_path), LocalStore(tmp_path / "runs" / "r")
    run.put("config.json", b"{}")
    (run.root / ".tmp" / "left").write_bytes(b"")
    assert everything(run) == ["config.json"] and everything(above) == ["runs/r/config.json"]
    assert above.children("runs/") == ["r"] and above.children("runs/r/") == ["config.json"]


def test_of_many_processes_that_create_one_key_exactly_one_wins(store: LocalStore) -> None:
    """They all wait for a key, are told the same one, and report; then the next key."""
    program = """
for line in sys.stdin:
    print(int(store.put_new("epoch/" + line.strip(), sys.argv[2].encode() * 1000)), flush=True)
"""
    racers = [_program(program, store, me) for me in range(8)]
    told = [racer.stdin for racer in racers if racer.stdin]
    heard = [racer.stdout for racer in racers if racer.stdout]
    for number in range(60):
        for pipe in told:
            pipe.write(f"{number}\n")
        for pipe in told:
            pipe.flush()
        won = [pipe.readline() == "1\n" for pipe in heard]
        assert sum(won) == 1
        assert store.get(f"epoch/{number}") == b"%d" % won.index(True) * 1000
    assert [_ended(racer) for racer in racers] == [0] * 8
    assert len(everything(store)) == 60 and [*(store.root / ".tmp").iterdir()] == []


def test_a_reader_never_sees_half_of_a_replaced_object(store: LocalStore, tmp_path: Path) -> None:
    program = """
source = Path(sys.argv[3])
source.write_bytes(sys.argv[2].encode() * 200_000)
for _ in range(100):
    store.put_file("hint", source)
"""
    store.put("hint", b"0" * 200_000)
    writers = [_program(program, store, me, tmp_path / f"source-{me}") for me in range(1, 4)]
    while any(writer.poll() is None for writer in writers):
        assert len(set(store.get("hint"))) == 1 and store.size("hint") == 200_000
    assert [_ended(writer) for writer in writers] == [0] * 3


def test_a_writer_killed_in_the_middle_leaves_nothing_but_a_trace_that_is_swept(
    store: LocalStore, tmp_path: Path
) -> None:
    """The kernel kills it with SIGXFSZ when its file grows past a limit: in the middle of the copy."""
    program = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store.put_file("blob/x", Path(sys.argv[2]))
"""
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1_000_000)
    assert _ended(_program(program, store, source)) == -signal.SIGXFSZ
    assert everything(store) == [] and store.size("blob/x") is None
    assert [path.stat().st_size for path in (store.root / ".tmp").iterdir()] == [100_000]
    assert store.sweep(3600) == 0 and store.sweep(-1) == 1
    store.put_file("blob/x", source)
    assert store.size("blob/x") == 1_000_000


def test_a_full_disk_is_said_with_the_path_and_a_hint_and_leaves_what_was_there(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk") as disk:
        store = LocalStore(disk / "runs")
        store.put("hint", b"before")
        source = tmp_path / "source"
        source.write_bytes(b"x" * 1_000_000)
        for write in (
            lambda: store.put_file("blob/x", source),
            lambda: store.put_new("blob/x", source.read_bytes()),
            lambda: store.put("hint", source.read_bytes()),
        ):
            with pytest.raises(StoreError, match=r"No space left on device .*/disk/runs") as caught:
                write()
            assert caught.value.hint and "disk is full" in caught.value.hint
        assert everything(store) == ["hint"] and store.get("hint") == b"before"
        assert [*(store.root / ".tmp").iterdir()] == []
        store.put("hint", b"after")
        assert store.get("hint") == b"after"


def test_a_read_only_file_system_can_be_read_and_says_so_when_written(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk") as disk:
        store = LocalStore(disk)
        store.put("a", b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert store.get("a") == b"x" and everything(store) == ["a"]
        for write in (lambda: store.put_new("b", b""), lambda: store.delete("a")):
            with pytest.raises(StoreError, match="Read-only file system") as caught:
                write()
            assert caught.value.hint and "read-only" in caught.value.hint


def test_a_directory_of_somebody_else_is_said_to_be_so() -> None:
    program = """
from trainer.errors import StoreError
os.chdir("/")
if os.getuid() == 0:
    os.setuid(65534)  # root may write everywhere
try:
    store.put_new("b/c", b"")
except StoreError as error:
    print(error.message, error.hint, sep="\\n")
"""
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are closed to others altogether
        os.chmod(folder, 0o555)
        child = _program(program, LocalStore(Path(folder)))
        message, hint = child.communicate()[0].splitlines()
        os.chmod(folder, 0o755)
    assert message.startswith("cannot write b/c to file:///") and "Permission denied" in message
    assert "check the owner" in hint


def test_any_spelling_of_a_directory_opens_the_same_store(tmp_path: Path) -> None:
    spaced = tmp_path / "a b"
    os.chdir(tmp_path)  # the isolated fixture brings it back
    stores = [open_store(uri) for uri in (str(spaced), "a b", spaced.as_uri(), f"file://localhost{spaced}")]
    assert {store.uri for store in stores} == {spaced.as_uri()}
    assert spaced.as_uri().endswith("a%20b")
    open_store("~/x").put("a", b"")
    assert (Path.home() / "x" / "a").exists()


def test_uris_that_cannot_be_opened_say_why() -> None:
    for uri in ("", " ", "ftp://host/x", "file://host/x", "file://x"):
        with pytest.raises(UsageError):
            open_store(uri)


def test_uris_are_joined_with_one_slash() -> None:
    assert join_uri("s3://b/x/", "runs", "a") == "s3://b/x/runs/a"
    assert join_uri("/tmp/x", "runs/", "/a") == "/tmp/x/runs/a"
    assert join_uri("file:///", "runs") == "file:///runs"


def _program(text: str, store: LocalStore, *more: object) -> subprocess.Popen[str]:
    """Another process that has the same store open as `store`."""
    begin = "import os, sys\nfrom pathlib import Path\nfrom trainer.artifacts.local import LocalStore\n"
    command = [sys.executable, "-c", f"{begin}store = LocalStore(Path(sys.argv[1]))\n{text}", str(store.root)]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *(str(each) for each in more)], stdin=pipe, stdout=pipe, text=True)


def _ended(child: subprocess.Popen[str]) -> int:
    child.communicate()
    return child.returncode


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own with 256 KiB; needs root."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k"]
    if os.getuid() != 0:
        pytest.skip("only root can mount a small disk")
    if (said := subprocess.run(["mount", *options, "tmpfs", str(folder)], capture_output=True)).returncode:
        pytest.skip(f"cannot mount a small disk here: {said.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
