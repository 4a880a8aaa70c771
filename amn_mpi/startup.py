"""What a rank's start takes, by part: from the launcher to the first step of training.

The kernel knows when a process began, so that what lies before the first line of Python is known, too.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path

# launch: from the start of the process that starts this host's ranks to that of this rank; 0 for one rank.
# interpreter: until the first line of this program. modules: imports but torch's. mpi: mpi4py and MPI_Init,
# which waits for the last rank to arrive. configuration: on rank 0, command line and run folder. data: on
# rank 0, read or found prepared. session: own samples, model, engine. first_round: buffers, state, the
# first exchange. wait: for other ranks, in any part after mpi. total: all of it.
BEFORE = ("launch", "interpreter")
PARTS = (*BEFORE, "modules", "mpi", "configuration", "data", "torch", "session", "first_round", "wait")


class Startup:
    """Made by the program's first lines; each part is told when it is over.

    Attributes:
        seconds: wall seconds by part.
    """

    def __init__(self, now: float) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since, self._waited, self._now = now, 0.0, now

    def over(self, part: str, waited: float = 0.0, now: float = 0.0) -> None:
        """What has passed since the last part was over is ``part``'s, but for waiting.

        Args:
            waited: seconds that this rank has waited for others so far.
        """
        now = now or time.monotonic()
        wait = waited - self._waited
        self.seconds[part] += now - self._since - wait
        self.seconds["wait"] += wait
        self._since, self._waited = now, waited

    def told(self, ranks_on_host: int) -> dict[str, float]:
        """Seconds by part, those before the first line included."""
        ages = [_age(process) for process in ("self", str(os.getppid()))]
        run = time.monotonic() - self._now
        before = (ages[1] - ages[0] if ranks_on_host > 1 else 0.0, ages[0] - run)
        every = {**self.seconds, **dict(zip(BEFORE, before))}
        found = {part: round(max(0.0, every.get(part, 0.0)), 4) for part in PARTS}
        return {**found, "total": round(sum(found.values()), 4)}


def _age(process: str) -> float:
    """Seconds since a process was started; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
