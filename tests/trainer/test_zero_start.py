"""DeepSpeed is there or the command that installs it is told; it builds nothing, waits for no lock, prints nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainer.runs import create_run, write_corpus
from trainer import zero_engine
from trainer.config import TrainConfig, override
from trainer.errors import NotReady

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# A line of the box program's own: the time, then what it says.
OWN_LINE = re.compile(r"\d\d:\d\d:\d\d (attempt|finished|held-out|preparing|step|train|\d+ conversations)")


def settings_of(device: torch.device = CPU, **fields: str) -> dict[str, object]:
    given = [(key.replace("__", "."), value) for key, value in fields.items()]
    return zero_engine.settings(override(TrainConfig(), given)[0], 64, device)


def test_a_lock_that_a_killed_build_left_behind_delays_nothing(tmp_path: Path) -> None:
    """DeepSpeed 0.19.8 would build a library for sums in shared memory, and wait on this lock for ever."""
    extensions = tmp_path / "extensions"
    lock = extensions / "deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    run = tmp_path / "runs/one"
    create_run(
        str(run), write_corpus(tmp_path / "corpus.jsonl", 20), train__max_steps=2,
        parallel__strategy="deepspeed", parallel__zero_stage=3,
    )  # fmt: skip

    ended = subprocess.run(
        [sys.executable, "-m", "trainer", "--run", str(run), "--workdir", str(tmp_path / "work")],
        env=os.environ | {"TORCH_EXTENSIONS_DIR": str(extensions)},
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [path for path in extensions.rglob("*") if path.is_file()] == [lock]
    assert [line for line in (ended.stdout + ended.stderr).splitlines() if not OWN_LINE.match(line)] == []


def test_without_the_package_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # so Python itself marks what is not there
    with pytest.raises(NotReady, match="needs deepspeed, not installed here") as caught:
        zero_engine.load()
    assert caught.value.hint == "pip install 'vlaunch[train,deepspeed]'"


def test_importing_deepspeed_starts_no_thread() -> None:
    """It is imported before the ranks are forked."""
    program = (
        "import os, torch, trainer.rank; from trainer import zero_engine; threads = os.listdir('/proc/self/task')\n"
        "zero_engine.load(); assert os.listdir('/proc/self/task') == threads; assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_a_users_file_says_stands_under_what_the_run_decides() -> None:
    theirs = (
        '{"zero_optimization": {"overlap_comm": true, "reduce_bucket_size": "auto", "stage": 3, '
        '"offload_optimizer": {"pin_memory": false, "device": "nvme"}}, "gradient_clipping": 7}'
    )
    settings = settings_of(
        GPU, parallel__deepspeed=theirs, parallel__offload="optimizer", train__max_grad_norm="0.5"
    )
    assert settings["gradient_clipping"] == 0.5
    assert settings["zero_optimization"] == {
        "stage": 2,
        "overlap_comm": True,
        "reduce_bucket_size": 64 * 64,
        "round_robin_gradients": False,
        "parameter_alignment": False,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
    }


@pytest.mark.parametrize(
    ("offload", "blocks"),
    [("none", set()), ("optimizer", {"offload_optimizer"}), ("all", {"offload_optimizer", "offload_param"})],
)
def test_memory_of_the_host_is_pinned_where_there_is_a_gpu(offload: str, blocks: set[str]) -> None:
    for device in (CPU, GPU):
        zero = settings_of(device, parallel__offload=offload, parallel__zero_stage="3")["zero_optimization"]
        assert isinstance(zero, dict)
        offloaded = {key: value for key, value in zero.items() if key.startswith("offload")}
        assert offloaded == dict.fromkeys(blocks, {"device": "cpu", "pin_memory": device == GPU})
