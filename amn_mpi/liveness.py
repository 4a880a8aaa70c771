"""Signs of life between ranks, and which of several failing ranks speaks.

Tiny messages on a communicator of their own. Ranks answer from inside their waits and between
steps of training. Who has waited for ``comm.timeout`` names the ranks that did not answer in its
second half.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np

CALL, HERE, FAILING, SPOKEN = 1, 2, 3, 4


class Liveness:
    """Roll calls. ``mpi`` is mpi4py's module (only ``comm.py`` imports it)."""

    def __init__(self, mpi: Any, world: Any) -> None:
        self._mpi, self._comm = mpi, world.Dup()
        self._others = [rank for rank in range(world.size) if rank != world.rank]
        self._token = np.zeros(1, np.int8)  # outlives every send
        self.forget()

    def forget(self) -> None:
        """A new wait begins; answers that are still under way from an older call count for nothing."""
        self._received(HERE)
        self._called, self._missing = float("-inf"), set[int]()

    def answer(self) -> None:
        """Answer the ranks that ask."""
        for caller in self._received(CALL):
            self._send(caller, HERE)

    def silent(self, waited: float, timeout: float) -> list[int]:
        """Ranks that gave no sign of life for half of ``timeout``, once ``waited`` reaches it.

        The roll is called after half of the timeout: a rank that cannot answer at once (a file
        being written, one very long step) has the other half.
        """
        now = time.monotonic()
        if waited > timeout / 2 and not self._missing and now - self._called > timeout / 2:
            self._called, self._missing = now, set(self._others)
            for rank in self._others:
                self._send(rank, CALL)
        self._missing.difference_update(self._received(HERE))
        return sorted(self._missing) if now - self._called > timeout / 2 else []

    def may_speak(self, patience: float) -> bool:
        """Whether this failing rank is the one to print.

        It is unless a lower rank fails within ``patience`` seconds, or another has spoken.
        """
        with contextlib.suppress(Exception):  # MPI itself may be what failed
            for rank in self._others:
                self._send(rank, FAILING)
            until = time.monotonic() + (patience if self._comm.rank else 0.02)
            while time.monotonic() < until:
                if self._received(SPOKEN) or any(r < self._comm.rank for r in self._received(FAILING)):
                    return False
                time.sleep(0.01)
            for rank in self._others:
                self._send(rank, SPOKEN)
        return True

    def _send(self, rank: int, tag: int) -> None:
        self._comm.Isend(self._token, dest=rank, tag=tag).Free()

    def _received(self, tag: int) -> list[int]:
        """Ranks from which such a message has come."""
        status, found = self._mpi.Status(), []
        while self._comm.Iprobe(tag=tag, status=status):
            found.append(status.Get_source())
            self._comm.Recv(np.empty(1, np.int8), source=found[-1], tag=tag)
        return found
