"""Bells between the ranks of a host: who sleeps in a wait is woken by the rank that it waits for.

MPI has no wait that both leaves the core to others and ends at once: a rank that sleeps between two
looks at its request finds the message late, one that looks all the time takes a core from those
that train. So where ranks sleep, whoever starts a message rings the one at its other end.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any


class Bells:
    """This rank's bell and those of the others on its host; ranks elsewhere cannot be rung.

    Args:
        node: mpi4py's communicator of the ranks of this host.
        rank: this rank's number among all.
    """

    def __init__(self, node: Any, rank: int) -> None:
        self._bell: socket.socket | None = None
        address = b""
        with suppress(OSError):  # none to be had: the sleeps alone serve, too
            bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            bell.setblocking(False)
            bell.bind("")  # a free name, which is no file
            if bell.fileno() < 1024:  # select knows no others
                self._bell, address = bell, bell.getsockname()
        self._others = {r: where for r, where in node.allgather((rank, address)) if where and r != rank}

    def reach(self, ranks: Iterable[int]) -> bool:
        """Whether all of ``ranks`` ring this one, and are rung by it."""
        return self._bell is not None and all(rank in self._others for rank in ranks)

    def ring(self, ranks: Iterable[int]) -> None:
        """Wake those of ``ranks`` that sleep on this host; some 5 microseconds for each."""
        for rank in ranks:
            if rank in self._others and self._bell is not None:
                with suppress(OSError):  # rung often enough already, or gone
                    self._bell.sendto(b"", self._others[rank])

    def sleep(self, seconds: float) -> bool:
        """Sleep for so long or until this rank is rung; True if it was.

        Each ring ends one sleep, now or later: one look at a request moves the library on by some of
        what has come, not by all of it.
        """
        if self._bell is None:
            time.sleep(seconds)
            return False
        if not select.select([self._bell], [], [], seconds)[0]:
            return False
        with suppress(BlockingIOError):
            self._bell.recv(1)
        return True
