"""What W&B and TensorBoard show of a run, read back with their own readers and from a server that remembers all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.launcher.lives import at, event, write_run
from tests.launcher.tracking.offline_files import read_offline
from tests.launcher.tracking.wandb_server import KEY, WandbServer
from trainer.artifacts.journal import Journal
from trainer.artifacts.metrics import read_metrics
from trainer.artifacts.store import open_store

pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
pytest.importorskip("tensorboard", reason="the extra [tensorboard] is not installed")

Vlaunch = Callable[..., Ran]
EVERY_STEP = list(range(41))


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A run that was preempted after step 30, went on from 20 and finished at 40 (lives.py)."""
    write_run(str(tmp_path / "store"), "demo")
    return str(tmp_path / "store")


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer().served() as serving:
        yield serving


def sync(vlaunch_process: Vlaunch, store: str, server: WandbServer, **more: str) -> Ran:
    environment = {**os.environ, **server.environment, **more}
    return vlaunch_process("metrics", "demo", "--store", store, "--wandb", env=environment)


def test_offline_files_show_one_curve_with_each_step_once(
    vlaunch_process: Vlaunch, store: str, tmp_path: Path
) -> None:
    done = vlaunch_process("metrics", "demo", "--store", store, "--wandb-offline", tmp_path / "files")
    assert done.code == 0, done.err
    assert "has every step up to 40" in done.out

    curve = read_offline(tmp_path / "files")
    assert [row["_step"] for row in curve.history] == EVERY_STEP
    losses = {step.step: step.loss for step in read_metrics(open_store(f"{store}/runs/demo"))[0]}
    assert {row["_step"]: row["train/loss"] for row in curve.history[1:]} == losses
    assert curve.run_id.startswith("demo-") and curve.name == "demo" and curve.exit_code == 0


def test_a_preemption_is_seen_in_the_step_that_follows_it(
    vlaunch_process: Vlaunch, store: str, tmp_path: Path
) -> None:
    vlaunch_process("metrics", "demo", "--store", store, "--wandb-offline", tmp_path / "files")
    rows = read_offline(tmp_path / "files").history

    (resumed,) = [row for row in rows if "event" in row]
    assert resumed["_step"] == 21 and resumed["resume/from_step"] == 20
    assert resumed["resume/lost_s"] == 15 and resumed["resume/restart_s"] == 10
    assert "attempt 2 in aws/eu-west-1 goes on from step 20" in resumed["event"]
    assert [row["run/preemptions"] for row in rows[20:22]] == [0, 1]
    assert {row["run/attempt"] for row in rows[1:21]} == {1} and {
        row["run/attempt"] for row in rows[21:]
    } == {2}
    assert (rows[0]["eval/loss"], rows[20]["eval/loss"], rows[40]["eval/loss"]) == (9.0, 3.5, 3.5)


def test_dollars_and_goodput_at_the_last_step_are_those_of_the_bill(
    vlaunch_process: Vlaunch, vlaunch: Vlaunch, store: str, tmp_path: Path
) -> None:
    vlaunch_process("metrics", "demo", "--store", store, "--wandb-offline", tmp_path / "files")
    bill = vlaunch("cost-report", "demo", "--store", store, "--json").json["runs"][0]

    summary = read_offline(tmp_path / "files").summary
    assert summary["now/dollars"] == bill["usd"]
    assert summary["now/goodput"] == bill["parts"]["useful"]["s"] / bill["billed_s"]
    assert summary["now/state"] == "finished"


def test_writing_the_files_again_leaves_one_run_in_the_folder(
    vlaunch_process: Vlaunch, store: str, tmp_path: Path
) -> None:
    for _ in range(2):
        assert vlaunch_process("metrics", "demo", "--store", store, "--wandb-offline", tmp_path).code == 0
    assert [row["_step"] for row in read_offline(tmp_path).history] == EVERY_STEP


def test_a_server_gets_each_step_once_however_often_it_is_told(
    vlaunch_process: Vlaunch, store: str, server: WandbServer
) -> None:
    for _ in range(2):
        done = sync(vlaunch_process, store, server)
        assert done.code == 0, done.err
    ((name, curve),) = server.curves.items()
    assert name in done.out and curve.received == curve.steps == EVERY_STEP
    assert curve.exit_codes == [0, 0]


def test_offline_files_sent_by_wandb_itself_are_the_same_curve(
    vlaunch_process: Vlaunch, store: str, server: WandbServer, tmp_path: Path
) -> None:
    vlaunch_process("metrics", "demo", "--store", store, "--wandb-offline", tmp_path)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    environment = {**os.environ, **server.environment}
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    (curve,) = server.curves.values()
    assert curve.steps == EVERY_STEP
    assert sync(vlaunch_process, store, server).code == 0
    assert list(server.curves.values()) == [curve] and curve.received == EVERY_STEP  # nothing was missing


def test_a_run_that_its_own_machine_keeps_up_to_date_is_left_to_it(
    vlaunch_process: Vlaunch, store: str, server: WandbServer
) -> None:
    live = open_store(f"{store}/runs/live")
    for item in (event("started", 0, 1, epoch=1, resumed_from=0), event("training", 1, 1, step=1)):
        live.put_new(item.key, item.encode())
    Journal(live, 1, "box").record("tracked", url="https://wandb.test/me/p/runs/live")
    done = vlaunch_process(
        "metrics", "live", "--store", store, "--wandb", env={**os.environ, **server.environment}
    )
    assert done.code == 0 and "attempt 1 keeps it up to date itself: https://wandb.test" in done.err
    assert not server.everything


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WANDB_MODE": "offline"}, "WANDB_MODE is offline"),
        ({"WANDB_MODE": "online"}, "there is no key for W&B here"),
    ],
)
def test_without_a_key_nothing_is_tried_and_files_are_offered(
    vlaunch_process: Vlaunch, store: str, environment: dict[str, str], said: str
) -> None:
    done = vlaunch_process("metrics", "demo", "--store", store, "--wandb", env={**os.environ, **environment})
    assert done.code == 3 and said in done.err and "--wandb-offline DIR" in done.err


def test_a_key_that_is_refused_is_one_clear_error(
    vlaunch_process: Vlaunch, store: str, server: WandbServer
) -> None:
    done = sync(vlaunch_process, store, server, WANDB_API_KEY="f" * 40)
    assert done.code in (1, 3) and done.err.count("Error: ") == 1 and "Traceback" not in done.err
    assert "f" * 40 not in done.out + done.err


def test_a_secret_that_stands_in_a_path_or_a_url_is_blacked_out(
    vlaunch_process: Vlaunch, tmp_path: Path, server: WandbServer
) -> None:
    """Neither the key itself nor what the environment calls a secret is in a file, or sent but as the login."""
    folder = tmp_path / "hunter2-hunter2"
    write_run(str(folder), "demo")
    secrets = {"HF_TOKEN": "hunter2-hunter2", "SOME_SECRET": "https://joe:swordfish@host"}
    environment = {**os.environ, **server.environment, **secrets}
    for view in (["--wandb"], ["--wandb-offline", tmp_path / "files"]):
        done = vlaunch_process("metrics", "demo", "--store", folder, *view, env=environment)
        assert done.code == 0, done.err

    told = server.everything + b"".join(
        p.read_bytes() for p in (tmp_path / "files").rglob("*") if p.is_file()
    )
    assert b"demo" in told and b"***" in told
    for secret in (KEY, *secrets.values()):
        assert secret.encode() not in told


def test_tensorboard_reads_each_step_once_also_after_a_kill(
    vlaunch_process: Vlaunch, store: str, tmp_path: Path
) -> None:
    """The second of two writers finds a file whose end was torn off in the middle of a step."""
    line = ("metrics", "demo", "--store", store, "--tensorboard", tmp_path / "boards")
    assert vlaunch_process(*line).code == 0
    (first,) = (tmp_path / "boards/demo").iterdir()
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    assert vlaunch_process(*line).code == 0
    assert len(list((tmp_path / "boards/demo").iterdir())) == 2

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "boards/demo")).Reload()
    scalars = board.Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == EVERY_STEP[1:]
    assert scalars[19].value == pytest.approx(3.05) and scalars[19].wall_time == at(20).timestamp()
    assert [scalar.step for scalar in board.Scalars("eval/loss")] == [0, 20, 40]
    (said,) = board.Tensors("event")
    assert b"goes on from step 20" in said.tensor_proto.string_val[0]


def test_a_view_that_is_followed_ends_with_its_run(
    vlaunch_process: Vlaunch, store: str, tmp_path: Path
) -> None:
    done = vlaunch_process(
        "metrics", "demo", "--store", store, "--tensorboard", tmp_path, "--follow", "--json"
    )
    assert json.loads(done.out)["tensorboard"] == {"where": str(tmp_path / "demo"), "newest": 40}


def test_ctrl_c_ends_following_without_harm(store: str, tmp_path: Path) -> None:
    live = open_store(f"{store}/runs/live")
    for item in (event("started", 0, 1, epoch=1, resumed_from=0), event("training", 1, 1, step=1)):
        live.put_new(item.key, item.encode())
    command = [
        sys.executable,
        "-m",
        "launcher",
        "metrics",
        "live",
        "--store",
        store,
        "--tensorboard",
        str(tmp_path),
    ]
    process = subprocess.Popen([*command, "-f"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "writing to" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130 and "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_to_follow_without_a_view_is_refused(vlaunch: Vlaunch, store: str) -> None:
    done = vlaunch("metrics", "demo", "--store", store, "--follow")
    assert done.code == 2 and "--wandb or --tensorboard DIR" in done.err
