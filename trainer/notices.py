"""Watching for the end of a cloud machine: one small process per machine that asks its metadata service.

A spot machine's end is announced there before a signal comes, and on AWS no signal comes until the machine shuts
down. What is seen goes onto the board that all ranks read (trainer/preemption.py), with the seconds really left;
from there it takes the path of SIGTERM. On Slurm and Kubernetes there is nothing to ask: SIGTERM is the notice.

    said                                        what happens
    an end within LEAD_S                        the run leaves: last step, save if it fits, exit 75
    an end later than that                      save soon, go on; leave LEAD_S before the end
    a risk without a time (rebalance, host
    maintenance)                                save soon, go on
    an end or a risk that is taken back         noted; once the run is leaving, it leaves

A process and not a thread, because the ranks are forked from the supervisor, and a fork copies the locks that other
threads hold at that moment. It is forked before anything heavy is imported, dies with the supervisor, and whatever
fails in it, training goes on: then SIGTERM is the only notice, or there is none.
"""

from __future__ import annotations

import ctypes
import ipaddress
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from trainer.errors import UsageError
from trainer.metadata import ADDRESS, Aws, Azure, Gcp, Service, Sighting, Watched
from trainer.preemption import NEWS, SIGNALS, Board, News, notice_length_s

log = logging.getLogger("trainer")

# An end further away than this is no reason to leave yet: Azure tells of some days ahead, GPU machines on GCP have an
# hour. Long enough for two saves of 13B weights with their moments over 10 Gbit/s (2 x 125 s, arithmetic), one of
# them under way. AWS's 120 s are always less.
LEAD_S = 300.0

# After failures the pauses double up to here: AWS asks for back-off, Google's agent goes up to 10 s.
_LONGEST_PAUSE_S = 10.0
# So often in a row before it is said that nothing is seen.
_FAILURES_TO_SAY = 3
# Never more than a few requests a second, whatever VLAUNCH_NOTICE_POLL_S says: AWS and Azure throttle.
_SHORTEST_PAUSE_S = 0.2
# More would be longer than the shortest notice.
_LONGEST_POLL_S = 30.0
# Words of a cloud that go into journal and log are cut there.
_LONGEST_SAYING = 160

_WATCHED: dict[str, Callable[[Service], Watched]] = {
    "aws": lambda service: Aws(service, notice_length_s()),
    "gcp": lambda service: Gcp(service, notice_length_s()),
    "azure": Azure,
}

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@contextmanager
def watched(board: Board) -> Iterator[None]:
    """While this lasts, the machine's cloud is asked for its end; nothing at all happens where there is no cloud.

    Raises:
        UsageError: a variable of the environment is wrong.
    """
    cloud, service, pause_s = which_cloud(), metadata_service(), _pause_s()
    if cloud is None:
        yield
        return
    asked = _WATCHED[cloud](service)
    process = multiprocessing.get_context("fork").Process(
        target=_watch, args=(asked, pause_s or asked.pause_s, board, os.getpid()), name="notices", daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.kill()  # it ignores SIGTERM, which the machine's end sends to everybody
        process.join()


def which_cloud(root: Path = Path("/sys")) -> str | None:
    """aws, gcp, azure, or None; from VLAUNCH_CLOUD, else from what the firmware says (no request, no root rights).

    The firmware's words are those that cloud-init's ds-identify goes by. A container sees them too.

    Raises:
        UsageError: VLAUNCH_CLOUD is no cloud of ours; `none` means: ask nobody.
    """
    if named := os.environ.get("VLAUNCH_CLOUD"):
        if named not in (*_WATCHED, "none"):
            raise UsageError(
                f"VLAUNCH_CLOUD={named} is no cloud whose notices are known",
                hint=f"one of {', '.join(_WATCHED)}, or none",
            )
        return None if named == "none" else named
    vendor = _word(root / "class/dmi/id/sys_vendor")
    if vendor == "Amazon EC2" or _word(root / "hypervisor/uuid").lower().startswith("ec2"):  # Nitro, Xen
        return "aws"
    if _word(root / "class/dmi/id/product_name") == "Google Compute Engine":
        return "gcp"
    if (
        _word(root / "class/dmi/id/chassis_asset_tag") == "7783-7084-3265-9085-8269-3286-77"
    ):  # "MSFT AZURE VM"
        return "azure"
    return None


def metadata_service() -> Service:
    """The address that all three clouds use, or VLAUNCH_METADATA_URL: for tests, and emulators on this machine.

    The variable opens no door: whoever sets the environment of this program could as well run another one, and only
    addresses that never leave this machine or its host are taken, so neither a misspelled nor a planted one
    makes the box talk to a stranger. A stranger could do no more than end the attempt, with its work saved.

    Raises:
        UsageError: it is no http:// URL with a loopback or link-local address.
    """
    url = os.environ.get("VLAUNCH_METADATA_URL") or f"http://{ADDRESS}"
    try:
        parts = urlsplit(url)
        address = ipaddress.ip_address(parts.hostname or "")
        here = address.is_loopback or address.is_link_local
        if here and (parts.scheme, parts.path.rstrip("/"), parts.query) == ("http", "", ""):
            return Service(str(address), parts.port or 80)
    except ValueError:
        pass
    raise UsageError(
        f"VLAUNCH_METADATA_URL={url} is no address of this machine", hint="http://127.0.0.1:PORT, for tests"
    )


def follow(watcher: Watched, board: Board, pause_s: float, goes_on: Callable[[], bool]) -> bool:
    """Post what is seen until it says that the machine has to be left (True), or until `goes_on` says no."""
    said: dict[str, str] = {}
    failures = 0
    while goes_on():
        try:
            seen = watcher.look()
        except Exception as error:  # whatever is wrong there, or here: it is tried again
            failures += 1
            if failures == _FAILURES_TO_SAY:
                log.warning("no notice can be seen, only SIGTERM: the metadata service fails: %s", error)
            time.sleep(min(pause_s * 2 ** min(failures - 1, 9), max(pause_s, _LONGEST_PAUSE_S)))
            continue
        if failures >= _FAILURES_TO_SAY:
            log.info("the metadata service answers again")
        failures = 0
        if _post(seen, said, board):
            return True
        time.sleep(pause_s)
    return False


def _post(seen: list[Sighting], said: dict[str, str], board: Board) -> bool:
    """Put what is new onto the board. Returns whether the machine has to be left. `said`: what stands there, by key."""
    ends = [sighting for sighting in seen if sighting.left_s is not None and sighting.left_s <= LEAD_S]
    if ends:
        first = min(ends, key=lambda sighting: sighting.left_s or 0.0)
        board.post(News(_clean(first.said), leave_by=time.monotonic() + (first.left_s or 0.0)))
        return True
    for sighting in seen:
        if sighting.key not in said:
            said[sighting.key] = sighting.said
            board.post(News(_clean(sighting.said)))
    for key in said.keys() - {sighting.key for sighting in seen}:
        board.post(News(_clean(f"{said.pop(key)}: taken back"), urgent=False))
    return False


def _watch(watcher: Watched, pause_s: float, board: Board, supervisor: int) -> None:
    """The process. Its end is the supervisor's, or the news that the machine goes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def alive() -> bool:
        return os.getppid() == supervisor

    if follow(watcher, board, pause_s, alive) and alive():
        os.kill(supervisor, NEWS)


def _pause_s() -> float | None:
    """VLAUNCH_NOTICE_POLL_S; None: as each cloud recommends."""
    text = os.environ.get("VLAUNCH_NOTICE_POLL_S", "")
    if not text:
        return None
    try:
        return min(max(_SHORTEST_PAUSE_S, float(text)), _LONGEST_POLL_S)
    except ValueError:
        raise UsageError(f"VLAUNCH_NOTICE_POLL_S={text} is no number of seconds") from None


def _word(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _clean(words: str) -> str:
    """One line for journal and log, whatever was in the reply."""
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:_LONGEST_SAYING]
