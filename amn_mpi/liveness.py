"""Signs of life between ranks, the order to stop, and which of several failing ranks speaks.

Tiny messages on a communicator of their own. Ranks answer from inside their waits and between
steps of training. Who has waited for ``comm.timeout`` names the ranks that did not answer in its
second half.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np

CALL, HERE, FAILING, SPOKEN, ASK, ORDER = 1, 2, 3, 4, 5, 6


class Liveness:
    """Roll calls. ``mpi`` is mpi4py's module (only ``comm.py`` imports it)."""

    def __init__(self, mpi: Any, world: Any) -> None:
        self._mpi, self._comm = mpi, world.Dup()
        self._others = [rank for rank in range(world.size) if rank != world.rank]
        self._tokens = np.arange(128, dtype=np.int8)  # outlives every send
        self.forget()

    def forget(self) -> None:
        """A new wait begins; answers that are still under way from an older call count for nothing."""
        self._received(HERE)
        self._called, self._missing = float("-inf"), set[int]()

    def answer(self) -> None:
        """Answer the ranks that ask."""
        for caller in self._received(CALL):
            self._send(caller, HERE)

    def ask_to_stop(self, number: int) -> None:
        """Tell rank 0 that signal ``number`` has come."""
        self._send(0, ASK, number)

    def order_to_stop(self, number: int) -> None:
        """Tell all others; for rank 0."""
        for rank in self._others:
            self._send(rank, ORDER, number)

    def told_to_stop(self) -> int:
        """The signal's number where a rank asks rank 0, or rank 0 orders the others; else 0."""
        heard = self._heard(ORDER if self._comm.rank else ASK)
        return heard[0][1] if heard else 0

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

    def drain(self) -> None:
        """Take what nobody has waited for, before the end: some networks complain of the rest."""
        self._received(self._mpi.ANY_TAG)

    def revoke(self) -> None:
        """A rank is lost: whoever is about to answer hears of it."""
        self._comm.Revoke()

    def _send(self, rank: int, tag: int, number: int = 0) -> None:
        self._comm.Isend(self._tokens[number : number + 1], dest=rank, tag=tag).Free()

    def _received(self, tag: int) -> list[int]:
        """Ranks from which such a message has come."""
        return [rank for rank, _ in self._heard(tag)]

    def _heard(self, tag: int) -> list[tuple[int, int]]:
        """(rank, number) of every such message that has come."""
        status, found = self._mpi.Status(), []
        number = np.empty(1, np.int8)
        while self._comm.Iprobe(tag=tag, status=status):
            self._comm.Recv(number, source=status.Get_source(), tag=status.Get_tag())
            found.append((status.Get_source(), int(number[0])))
        return found
