"""Several runs one after another in one start of the ranks, each with a peak of memory of its own.

Argument: a JSON file with their command lines. ``resident.json`` in a run's folder has the MB that were
resident on each rank when it began.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from amn_mpi import main
from amn_mpi.comm import Communicator
from amn_mpi.startup import Startup


def each(comm: Communicator, argv: Sequence[str]) -> None:
    for words in json.loads(Path(argv[0]).read_text()):
        resident = comm.collect(begin_anew())
        main.Work(Startup(time.monotonic()))(comm, words)
        if comm.is_server:
            path = Path(words[words.index("--out") + 1]) / "resident.json"
            path.write_text(json.dumps(resident))


def begin_anew() -> float:
    """What the run before has freed goes back, and VmHWM begins with what is resident now, in MB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmRSS:\s*(\d+)", status)[0]) / 1024


main.main(sys.argv[1:], each)
