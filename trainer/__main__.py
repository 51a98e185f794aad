"""The box program: `python -m trainer --run URI`. Exit codes:

0    the run is finished and exported
75   the machine is being taken: start me again elsewhere (SkyPilot: recover_on_exit_codes)
2    the configuration or the corpus cannot be used       3    something is missing on this box
1    anything else; the reason is in the journal and on stderr
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from trainer.errors import Preempted, VlaunchError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description="Run one attempt of a training run."
    )
    parser.add_argument(
        "--run", required=True, metavar="URI", help="the run in its store, e.g. s3://bucket/runs/NAME"
    )
    parser.add_argument(
        "--workdir", type=Path, default=Path("vlaunch-work"), help="scratch space on this box; emptied first"
    )
    options = parser.parse_args(arguments)
    start_logging()
    # Waiting OpenMP threads sleep instead of spinning: on a box whose cores are shared, spinning threads of one
    # process keep another's from running at all. Read by libgomp when torch loads it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Asking how many GPUs there are must not start CUDA here: the processes are forked from this one.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    from trainer.artifacts.store import open_store
    from trainer.notices import watched
    from trainer.supervisor import Attempt

    try:
        attempt = Attempt(open_store(options.run), options.workdir.absolute())
        with watched(attempt.board):
            attempt.run()
    except Preempted as notice:
        logging.getLogger("trainer").info(notice.message)
        return notice.exit_code
    except VlaunchError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"Hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def start_logging() -> None:
    """What people read in `vlaunch logs`."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout
    )


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to do, and taking the interpreter apart with torch in it takes seconds on a busy box: seconds
    # of a machine that is paid for, or of a notice.
    os._exit(code)
