"""Children of a server that was killed; real processes stand for SkyPilot's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

psutil = pytest.importorskip("psutil", reason="psutil comes with SkyPilot: vlaunch[sky]")

SERVER = """
import multiprocessing, socket, time

def queue(pipe):
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        time.sleep(600)

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=queue, args=(there,))
    process.start()
    print(here.recv(), process.pid, flush=True)
    process.join()
"""


def test_what_holds_the_port_of_a_dead_server_is_ended_and_a_living_server_is_left_alone(
    tmp_path: Path,
) -> None:
    from launcher.spot.leftovers import end_leftovers

    (tmp_path / "server.py").write_text(SERVER)
    command = [sys.executable, str(tmp_path / "server.py"), "-m", "sky.server.server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port, child = map(int, server.stdout.readline().split())
        queue = psutil.Process(child)
        alive = end_leftovers(port)
        server.kill()
        server.wait()
        orphaned = end_leftovers(port)
    psutil.wait_procs([queue], timeout=30)

    assert (alive, orphaned) == ([], [child])
    assert not queue.is_running()
