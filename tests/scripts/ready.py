"""Ranks that stand ready: one job after another, so that their start is paid for once.

Arguments: FOLDER, and the process whose jobs they are; they end with it. Job K is FOLDER/K.json: a script
whose function ``each(comm, argv)`` is called, what it is called with, and variables of the environment;
null is the end. After a job every rank prints "ended K" on both streams.
"""

from __future__ import annotations

import itertools
import json
import os
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from amn_mpi import main
from amn_mpi.comm import Communicator


def serve(comm: Communicator, argv: Sequence[str]) -> None:
    folder, user = Path(argv[0]), int(argv[1])
    for number in itertools.count():
        job = wait_for(folder / f"{number}.json", user)
        if job is None:
            return
        with mock.patch.dict(os.environ, job["env"]):
            runpy.run_path(job["script"])["each"](comm, job["argv"])
        comm.meet()
        comm.widen()
        for stream in (sys.stdout, sys.stderr):
            stream.write(f"ended {number}\n")  # in one piece, where print might write two
            stream.flush()


def wait_for(path: Path, user: int) -> Any:
    while not path.exists():
        if not Path(f"/proc/{user}").exists():
            return None
        time.sleep(0.02)
    return json.loads(path.read_text())


main.main(sys.argv[1:], serve)
