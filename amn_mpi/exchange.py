"""What a method's wire declaration means in messages: buffers, order, weights.

Rows travel straight from and to flat buffers that are allocated once. Placement is in contiguous
blocks of clients, so rows from the ranks lie in cohort order on rank 0 as they arrive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from amn_mpi import fixed
from amn_mpi.comm import Communicator
from amn_mpi.errors import Misdeclared
from amn_mpi.fixed import BOUND
from amn_mpi.heap import zeros
from amn_mpi.left import COUNTS, SECONDS, Left
from amn_mpi.methods.base import Arrived, Method, State, Update
from amn_mpi.placement import Placement
from amn_mpi.shards import Shards

# What can be wrong with a client's turn, by number; the last: a stop has cut it off.
REMEDY = "a smaller local.lr (or step size of the method) is the usual remedy"
TROUBLES = (
    "",
    f"its model or a loss is NaN or Inf; {REMEDY}",
    f"a parameter exceeds {BOUND:g}; {REMEDY}",
    "cut off",
)
CUT = 3


class Exchange:
    """The messages of one run, the same calls on every rank.

    Args:
        at_once: how many clients take their turns together.

    Attributes:
        left: what this rank's clients have sent.
        up: (members of the cohort, or those of a group, returned, S): what this rank's clients return, in
            the round that ``down`` was last asked for.
    """

    def __init__(
        self,
        comm: Communicator,
        placement: Placement,
        method: Method,
        samples: np.ndarray,
        cohort_size: int,
        shards: Shards | None = None,
        at_once: int = 1,
    ) -> None:
        self.comm, self.placement, self.method, self.samples = comm, placement, method, samples
        self.shards = shards
        self.left = Left(comm) if shards is None else shards.left
        wire, size = method.wire, method.part.size
        everyone = 0 if comm.owner is None else len(placement.clients(comm.owner))
        own = min(everyone, cohort_size)
        self._sum = zeros(wire.returned, size, dtype=torch.int64) if wire.up == "mean" else None
        serves = comm.is_server and shards is None  # rows of others go through rank 0
        most = max(everyone, len(samples) if serves else 0)
        if not wire.renewed:
            most = max(own, cohort_size if serves else 0)
        rows = {"none": 0, "broadcast": 1, "rows": most}[wire.down]
        self._down = zeros(rows, wire.received, size)
        self.up = zeros(own if wire.up == "rows" else min(own, at_once), wire.returned, size)
        gathers = serves and comm.size > 1 and wire.up == "rows"
        self._gathered = zeros(cohort_size if gathers else 0, wire.returned, size)
        self._most_up, self._most_gathered = self.up, self._gathered
        self._features = torch.zeros(own, method.features)
        self._newest: tuple[int, int] = (-1, 0)
        self._got = self._down[:0]

    def down(self, round: int, cohort: np.ndarray, server: State) -> torch.Tensor:
        """Rank 0 personalises and sends; returns what this rank received.

        It is sent once for a round and a cohort, however often it is asked for: what evaluation
        needs after round t is what round t + 1 starts from.

        Returns:
            (1, received, S) for a broadcast, so much for each of this rank's members of the
            cohort, or (0, received, S) where nothing goes down.
        """
        wire, comm = self.method.wire, self.comm
        self._open(self.method.returned(round))
        asked = (round, 0 if wire.down == "broadcast" else len(cohort))
        if wire.down == "none" or asked == self._newest:
            return self._got
        self._newest = asked
        if wire.down == "broadcast":
            if comm.is_server:
                self.method.personalise(server, round, cohort, self._down)
            comm.broadcast(self._down.numpy())
            self._got = self._down
        else:
            self._got = self._scatter(round, cohort, server)
        return self._got

    def _open(self, returned: int) -> None:
        """Rows of so many vectors lie one behind the other in the buffers, as they are sent.

        Raises:
            Misdeclared: the method's ``returned`` is not what its ``wire`` allows.
        """
        most = self.method.wire.returned
        if returned == most == self.up.shape[1]:
            return
        if not 1 <= returned <= most or (returned < most and self.method.wire.up != "rows"):
            raise Misdeclared(
                f"{type(self.method).__name__}.returned gave {returned}; valid is {most} (wire.returned), or "
                'from 1 on where wire.up is "rows"'
            )
        self.up, self._gathered = (
            buffer.view(-1)[: len(buffer) * returned * buffer.shape[2]].view(-1, returned, buffer.shape[2])
            for buffer in (self._most_up, self._most_gathered)
        )

    def renew(self, round: int, everyone: np.ndarray, server: State) -> torch.Tensor:
        """What the server would send to all clients in ``round``, where evaluation needs it."""
        wire = self.method.wire
        if wire.down == "broadcast" or wire.renewed:
            return self.down(round, everyone, server)
        return self._down[:0]

    def _scatter(self, round: int, cohort: np.ndarray, server: State) -> torch.Tensor:
        comm, counts = self.comm, self.placement.counts(cohort)
        mine = 0 if comm.owner is None else int(counts[comm.owner])
        if self.shards is not None:
            self.shards.mix(server, round, cohort, self._down[:mine])
            return self._down[:mine]
        rows = self._down[: len(cohort)]
        if comm.is_server:
            self.method.personalise(server, round, cohort, rows)
        out = rows.numpy() if comm.is_server else self._down[:mine].numpy()
        return torch.from_numpy(comm.scatter_rows(rows.numpy() if comm.is_server else None, counts, out))

    def slot(self, position: int) -> torch.Tensor:
        """(returned, S): where this rank's ``position``-th client of the cohort puts what it sends.

        For a mean the slots serve again: after each ``take``, or group of them.
        """
        return self.up[position if self.method.wire.up == "rows" else position % len(self.up)]

    def take(self, client: int, position: int, cohort: np.ndarray, update: Update) -> int:
        """A client's turn is over: check what it leaves and, for a mean, add it to the sum.

        Returns:
            0, or the number of what is wrong in ``TROUBLES``; it goes up with the figures.
        """
        vectors, features = self.slot(position), update.features
        if not np.isfinite(list(update.figures.values())).all():
            return 1
        if features is not None and not features.isfinite().all():
            return 1
        # Also where nothing is summed: one model of 1e20 in a mix of models leads the others astray.
        largest = np.array([_largest(v) for v in (vectors, *update.state.values())])
        if not (largest <= BOUND).all():
            return 2 if np.isfinite(largest).all() else 1
        if self._sum is None:
            return 0
        weight = 1.0 / len(cohort)
        if self.method.wire.weights == "samples":
            weight = float(self.samples[client]) / float(self.samples[cohort].sum())
        fixed.add(self._sum, vectors, weight)
        return 0

    def keep(self, position: int, features: torch.Tensor | None) -> torch.Tensor | None:
        """A copy of a client's features where it stays until the round ends.

        Left where the turn made it, it may lie in the gap of a freed vector, so that the next turn's does not
        fit there: an owner then took up to one more vector for each of its clients.
        """
        if features is None:
            return None
        return self._features[position].copy_(features.reshape(-1))

    def bring_up(self, cohort: np.ndarray, updates: Sequence[Update]) -> Arrived | None:
        """What the cohort returned, on rank 0; None elsewhere. ``shards`` moves its rows itself."""
        wire, comm = self.method.wire, self.comm
        counts = self.placement.counts(cohort)
        rows = total = torch.empty(0)
        if wire.up == "rows" and self.shards is None:
            own, whole = self.up[: len(updates)].numpy(), self._gathered[: len(cohort)].numpy()
            into = whole if comm.is_server and comm.size > 1 else None
            self.left.add(own.nbytes, *wire.kinds[: own.shape[1]])
            rows = torch.from_numpy(comm.gather_rows(own, counts, into))
        elif self._sum is not None:
            self.left.add(self._sum.nbytes, *wire.kinds)
            total = torch.from_numpy(comm.sum_exact(self._sum.numpy()))
        own = self._told(updates)
        told = self._gather(own.view(np.uint8).reshape(-1, own.itemsize), cohort).ravel().view(own.dtype)
        arrived = self._arrived(cohort, rows, total, told) if comm.is_server else None
        if self._sum is not None:
            self._sum.zero_()
        return arrived

    def _told(self, updates: Sequence[Update]) -> np.ndarray:
        """What this rank's clients tell beside their vectors, a record each: one message for all of it.

        The seconds are told always: with them a round ends on rank 0 when it ends.
        """
        names, count = self.method.wire.figures, self.method.features
        record = [("numbers", np.float64, (1 + len(names),)), ("features", np.float32, (count,))]
        told = np.zeros(len(updates), record)
        for one, update in zip(told, updates):
            one["numbers"] = [-update.trouble or update.seconds, *(update.figures[name] for name in names)]
            if update.features is not None:
                one["features"] = update.features.numpy().ravel()
        self.left.add(8 * len(told), SECONDS)
        self.left.add(8 * len(told) * len(names), self.method.wire.figure_kind)
        self.left.add(told["features"].nbytes, self.method.wire.feature_kind)
        return told

    def _arrived(
        self, cohort: np.ndarray, rows: torch.Tensor, total: torch.Tensor, told: np.ndarray
    ) -> Arrived:
        """Without the clients that diverged; the others share their weight in a mean."""
        numbers = told["numbers"]
        wrong = {int(client): int(-code) for client, code in zip(cohort, numbers[:, 0]) if code < 0}
        good = numbers[:, 0] >= 0
        dropped = {client: TROUBLES[code] for client, code in wrong.items() if code != CUT}
        trouble, mean = "", torch.empty(0)
        sent = self._got if self.shards is None and self.method.wire.down == "rows" else None
        if len(dropped) == len(cohort):
            client, reason = next(iter(dropped.items()))
            trouble = f"every client of the cohort diverged, client {client} first: {reason}"
        elif CUT not in wrong.values() and self._sum is not None:
            sizes = self.samples[cohort] if self.method.wire.weights == "samples" else np.ones(len(cohort))
            share = float(sizes[good].sum()) / float(sizes.sum())
            mean = fixed.mean(total, share)
        if wrong and len(rows):
            rows = rows[torch.from_numpy(good)]
        figures = {name: numbers[good, 1 + k] for k, name in enumerate(self.method.wire.figures)}
        cut = CUT in wrong.values()
        features = torch.from_numpy(told["features"][good])
        seconds = numbers[good, 0]
        return Arrived(
            cohort[good], rows, mean, figures, features, seconds, dropped, trouble, cut, sent, good
        )

    def gather_counts(self, own: np.ndarray, width: int, cohort: np.ndarray) -> np.ndarray:
        """Rows of ``width`` counts from every client of the cohort, in cohort order on rank 0."""
        rows = np.ascontiguousarray(own, np.int64).reshape(-1, width)
        self.left.add(rows.nbytes, COUNTS)
        return self._gather(rows, cohort)

    def _gather(self, own: np.ndarray, cohort: np.ndarray) -> np.ndarray:
        """A row or record from every client of the cohort, in cohort order on rank 0."""
        into = np.empty((len(cohort), *own.shape[1:]), own.dtype) if self.comm.is_server else None
        return self.comm.gather_rows(own, self.placement.counts(cohort), into)


def _largest(values: torch.Tensor) -> float:
    """The largest absolute value, NaN if there is one; copies nothing."""
    if not values.numel():
        return 0.0
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))
