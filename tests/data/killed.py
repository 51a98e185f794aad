"""`python -m tests.data.killed MOMENT WORKERS FOLDER`: the job of test_resume.py, killed at its MOMENT-th file event.

An event is the opening or renaming of a file in FOLDER, by the parent or (each counts for itself) a worker. Prints
how many there were if nobody was killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.data.jobs import whole_job
from trainer.data.pipeline import prepare


def main(moment: int, workers: int, folder: Path) -> None:
    seen = 0

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.mkdir") and str(args[0]).startswith(str(folder)):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    prepare(whole_job(folder), workers)
    print(seen)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
