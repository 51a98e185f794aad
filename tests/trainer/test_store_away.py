"""A machine that comes up while the store is away waits for it, instead of ending the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# A store that is away for two looks, and then has no run.
MACHINE = """
import sys
from pathlib import Path
from trainer.__main__ import start_logging
from trainer.artifacts.local import LocalStore
from trainer.errors import StoreAway, UsageError
from trainer.supervisor import Attempt

class Returning(LocalStore):
    looks = 0
    def get(self, key):
        Returning.looks += 1
        if Returning.looks <= 2:
            raise StoreAway("nobody answers")
        return super().get(key)

start_logging()
try:
    Attempt(Returning(Path(sys.argv[1])), Path(sys.argv[2])).run()
except UsageError as error:
    print(Returning.looks, error.message)
"""


def test_a_machine_that_comes_up_during_an_outage_waits_for_the_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MACHINE, str(tmp_path / "store"), str(tmp_path / "work")]
    (tmp_path / "store").mkdir()
    environment = os.environ | {"VLAUNCH_CLOUD": "none"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)

    waits, said = done.stdout.splitlines()[:2], done.stdout.splitlines()[-1]
    assert all(line.endswith("waiting for the store: nobody answers") for line in waits)
    assert said.startswith("3 there is no run at ")
