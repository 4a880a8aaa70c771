"""Several runs one after another.

Argument: a JSON file with their command lines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from amn_mpi import main
from amn_mpi.comm import Communicator
from amn_mpi.startup import Startup


def each(comm: Communicator, argv: Sequence[str]) -> None:
    for words in json.loads(Path(argv[0]).read_text()):
        main.Work(Startup(time.monotonic()))(comm, words)
        comm.meet()
        comm.widen()
