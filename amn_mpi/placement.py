"""Which rank owns which client: contiguous blocks of clients with balanced work.

Blocks are contiguous so that rows which arrive rank after rank lie in client order already: no
rank copies an N x P matrix only to sort it, and no sum depends on the number of ranks. A free
assignment could balance skewed sizes better; the largest block is at most one client above the
mean here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from amn_mpi.config import Local


@dataclass(frozen=True)
class Placement:
    """Owner ``r`` (0 .. owners-1) holds the clients ``bounds[r] .. bounds[r + 1] - 1``."""

    bounds: tuple[int, ...]

    @property
    def owners(self) -> int:
        return len(self.bounds) - 1

    def clients(self, owner: int) -> range:
        return range(self.bounds[owner], self.bounds[owner + 1])

    def of(self, owner: int, cohort: np.ndarray) -> np.ndarray:
        """The members of an ascending ``cohort`` that this owner holds, ascending."""
        low, high = np.searchsorted(cohort, [self.bounds[owner], self.bounds[owner + 1]])
        return cohort[low:high]

    def counts(self, cohort: np.ndarray) -> np.ndarray:
        """Members of the ``cohort`` per owner, shape (owners,)."""
        return np.diff(np.searchsorted(cohort, self.bounds))


def training_steps(local: Local, samples: np.ndarray) -> list[int]:
    """Steps of SGD in one round of each client, the measure of its work."""
    if local.steps:
        return [local.steps] * len(samples)
    return (-(-samples // local.batch_size) * local.epochs).tolist()


def place(work: Sequence[int], owners: int) -> Placement:
    """Split clients, whose work is given in training steps, into ``owners`` contiguous blocks.

    The heaviest block is as light as contiguous blocks allow (binary search over its weight).
    With more owners than clients the first owners hold one client each and the rest are idle.
    """
    weights = [max(1, int(w)) for w in work]
    low, high = max(weights), sum(weights)
    while low < high:
        middle = (low + high) // 2
        if _blocks(weights, middle, owners)[1]:
            high = middle
        else:
            low = middle + 1
    return Placement(tuple(_blocks(weights, low, owners)[0]))


def _blocks(weights: list[int], limit: int, owners: int) -> tuple[list[int], bool]:
    """Greedy bounds with no block above ``limit``, and whether they suffice.

    A block also ends when only one client is left for each owner still without one: no owner
    idles while another holds two.
    """
    bounds, load, clients = [0], 0, len(weights)
    for client, weight in enumerate(weights):
        free = owners - len(bounds)
        must_share = clients - client <= free
        if client > bounds[-1] and (load + weight > limit or must_share):
            bounds.append(client)
            load = 0
        load += weight
    fits = len(bounds) <= owners
    bounds += [clients] * (owners + 1 - len(bounds))
    return bounds, fits
