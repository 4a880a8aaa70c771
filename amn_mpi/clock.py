"""Where the time goes: wall seconds by phase on one rank."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from amn_mpi.comm import Communicator
from amn_mpi.startup import Startup

PHASES = ("start", "prepare", "train", "exchange", "server", "evaluate", "checkpoint", "wait")


class Clock:
    """Phases do not overlap: an inner one interrupts the outer one, waits count as ``wait``.

    Attributes:
        startup: where the start is told by parts that are finer than phases; None after the first run.
    """

    def __init__(self, comm: Communicator, started: float, startup: Startup | None = None) -> None:
        self._comm, self._stack, self.startup = comm, ["start"], startup
        self._starts = startup is not None
        self.seconds: dict[str, float] = defaultdict(float)
        self._since, self._waited = started, comm.wait_seconds

    def begin(self, phase: str) -> None:
        """From now on what no inner phase claims counts as ``phase``."""
        self._close()
        self._stack[0] = phase

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._close()
        if phase == "train":
            self.over("first_round")
            self._starts = False
        self._stack.append(phase)
        try:
            yield
        finally:
            self._close()
            self._stack.pop()

    def over(self, part: str) -> None:
        """A part of the start is over; no more of them once training has begun."""
        if self.startup is not None and self._starts:
            self.startup.over(part, self._comm.wait_seconds)

    def snapshot(self) -> dict[str, float]:
        """Seconds by phase until now."""
        self._close()
        return {phase: round(self.seconds[phase], 4) for phase in PHASES}

    def _close(self) -> None:
        now, waited = time.monotonic(), self._comm.wait_seconds
        self.seconds["wait"] += waited - self._waited
        self.seconds[self._stack[-1]] += now - self._since - (waited - self._waited)
        self._since, self._waited = now, waited
