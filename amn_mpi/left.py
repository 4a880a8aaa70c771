"""What leaves a client's rank: bytes by kind, counted where they are sent."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amn_mpi.comm import Communicator

PARAMETERS, SECONDS, COUNTS, STATE = "parameters", "seconds", "counts", "kept state"


class Left:
    """One rank's account; it stays empty on a rank without clients, and where rank 0 is alone.

    Attributes:
        bytes: kind -> bytes that this rank's clients have sent in this run.
    """

    def __init__(self, comm: Communicator) -> None:
        self._counts = comm.size > 1 and comm.owner is not None
        self.bytes: Counter[str] = Counter()

    def add(self, nbytes: int, *kinds: str) -> None:
        """``nbytes`` are sent now, equal parts of each of ``kinds``."""
        if self._counts and nbytes:
            for kind in kinds:
                self.bytes[kind] += nbytes // len(kinds)


def together(ranks: list[dict[str, int]]) -> dict[str, int]:
    """The accounts of all ranks in one, kinds by name."""
    total: Counter[str] = Counter()
    for each in ranks:
        total.update(each)
    return dict(sorted(total.items()))
