"""What a cloud says becomes the flag that the loop reads: the right one, once, with the seconds really left."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.metadata_servers import AwsService, AzureService, looks
from trainer.errors import UsageError
from trainer.metadata import Aws, Azure, Service, Sighting
from trainer.notices import LEAD_S, follow, metadata_service, watched, which_cloud
from trainer.preemption import Board, News, Notice

# A second is lost to rounding: all times of these protocols are whole seconds.
ROUNDING_S = 1.5


# From what is seen to what is done


def test_an_end_that_is_near_is_posted_with_its_time_and_ends_the_watch(
    served: Callable[[Any], Any], board: Board
) -> None:
    service = served(AwsService())
    service.interrupt(120)

    assert follow(Aws(service.service), board, 0.0, looks(1))

    notice = Notice(board)
    assert notice.given
    assert notice.left_s == pytest.approx(120 - 1, abs=ROUNDING_S)
    assert notice.source.startswith("aws: terminate at ")


def test_an_end_that_is_far_is_a_warning_first_and_a_notice_when_it_is_near(
    served: Callable[[Any], Any], board: Board
) -> None:
    service = served(AzureService())
    azure = Azure(service.service)
    service.schedule("Redeploy", LEAD_S + 100)
    assert not follow(azure, board, 0.0, looks(3))

    notice = Notice(board)
    assert not notice.given and notice.save_soon and notice.left_s == math.inf
    assert [news.source.partition(" not")[0] for news in notice.warnings()] == ["azure: Redeploy"]
    service.ahead_s = 101.0  # time passes
    assert follow(azure, board, 0.0, looks(1))
    assert notice.given
    assert notice.left_s == pytest.approx(LEAD_S - 1, abs=1 + ROUNDING_S)


def test_a_far_end_that_is_taken_back_is_no_reason_to_leave(
    served: Callable[[Any], Any], board: Board
) -> None:
    service = served(AzureService())
    azure = Azure(service.service)
    service.schedule("Reboot", 900)
    heard: list[Sighting] = []

    class Recorded:
        pause_s = 0.0

        def look(self) -> list[Sighting]:
            seen = azure.look()
            heard.extend(seen)
            service.cancel()
            return seen

    assert not follow(Recorded(), board, 0.0, looks(3))

    notice = Notice(board)
    assert not notice.given
    assert [news.urgent for news in notice.warnings()] == [True, False]
    assert len(heard) == 1


def test_a_rebalance_recommendation_is_told_once_and_does_not_end_the_watch(
    served: Callable[[Any], Any], board: Board
) -> None:
    service = served(AwsService())
    service.recommend_rebalance()

    assert not follow(Aws(service.service), board, 0.0, looks(4))
    assert len(board.read(0)[0]) == 1


def test_what_a_cloud_says_is_one_short_line_in_the_journal(
    served: Callable[[Any], Any], board: Board
) -> None:
    service = served(AwsService())
    service.advice = {"noticeTime": "2026\n\x1b[31m" + "x" * 5000}

    follow(Aws(service.service), board, 0.0, looks(1))

    (news,) = board.read(0)[0]
    assert news.source.isprintable() and len(news.source) <= 160


# The test's server is threads of this process; the supervisor has none when it forks.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_the_supervisor_is_told_at_once_and_the_watcher_ends_with_it(
    served: Callable[[Any], Any], board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = served(AwsService())
    service.interrupt(120)
    monkeypatch.setenv("VLAUNCH_CLOUD", "aws")
    monkeypatch.setenv("VLAUNCH_METADATA_URL", service.url)
    came = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: came.set())
    try:
        with watched(board):
            assert came.wait(60)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert Notice(board).given
    assert "notices" not in {process.name for process in multiprocessing.active_children()}


# The flag


def test_the_board_is_read_across_a_fork_and_a_half_written_line_is_not(board: Board) -> None:
    pid = os.fork()
    if pid == 0:
        board.post(News("a"))
        board.post(News("b", leave_by=5.0))
        board._file.write(b'{"source": "ha')
        os._exit(0)
    os.waitpid(pid, 0)

    first, where = board.read(0)

    assert first == [News("a"), News("b", leave_by=5.0)]
    assert board.read(where) == ([], where)


def test_of_two_ends_the_earlier_one_counts(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLAUNCH_NOTICE_S", "60")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    notice = Notice(board)
    notice.listen()
    try:
        assert notice.left_s == math.inf
        os.kill(os.getpid(), signal.SIGINT)
        assert notice.given and notice.left_s == math.inf and notice.source == "SIGINT"
        board.post(News("azure: Terminate", leave_by=time.monotonic() + 200))
        assert 100 < notice.left_s <= 199
        os.kill(os.getpid(), signal.SIGTERM)
        assert 30 < notice.left_s <= 59
        board.post(News("azure: Preempt", leave_by=time.monotonic() + 20))
        assert notice.left_s <= 19
        assert notice.source == "azure: Preempt"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Which cloud, and where


@pytest.mark.parametrize(
    ("cloud", "file", "words"),
    [
        ("aws", "class/dmi/id/sys_vendor", "Amazon EC2"),
        ("aws", "hypervisor/uuid", "ec2e1916-9099-7caf-fd21-012345abcdef"),
        ("gcp", "class/dmi/id/product_name", "Google Compute Engine"),
        ("azure", "class/dmi/id/chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
        (None, "class/dmi/id/sys_vendor", "QEMU"),
        (None, "class/dmi/id/product_name", "Virtual Machine"),
    ],
)
def test_the_firmware_says_which_cloud_this_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: str | None, file: str, words: str
) -> None:
    monkeypatch.delenv("VLAUNCH_CLOUD", raising=False)
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(words + "\n")

    assert which_cloud(tmp_path) == cloud


@pytest.mark.parametrize(("named", "cloud"), [("gcp", "gcp"), ("none", None)])
def test_the_environment_has_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, cloud: str | None
) -> None:
    monkeypatch.setenv("VLAUNCH_CLOUD", named)

    assert which_cloud(tmp_path) == cloud


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VLAUNCH_CLOUD", "asw"),
        ("VLAUNCH_NOTICE_POLL_S", "often"),
        ("VLAUNCH_NOTICE_S", "long"),
        ("VLAUNCH_METADATA_URL", "http://10.0.0.1"),
        ("VLAUNCH_METADATA_URL", "http://metadata.google.internal"),
        ("VLAUNCH_METADATA_URL", "https://127.0.0.1"),
        ("VLAUNCH_METADATA_URL", "http://127.0.0.1/path"),
        ("VLAUNCH_METADATA_URL", "http://127.0.0.1:port"),
        ("VLAUNCH_METADATA_URL", "127.0.0.1:8080"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(
    board: Board, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("VLAUNCH_CLOUD", "aws")
    monkeypatch.setenv(variable, value)

    with pytest.raises(UsageError, match=variable), watched(board):
        pass


def test_the_services_own_address_is_the_link_local_one() -> None:
    assert metadata_service() == Service("169.254.169.254", 80)
