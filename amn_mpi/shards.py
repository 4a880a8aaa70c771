"""The sharded server: all clients' models in blocks of columns over the owners.

Block b lies with owner b mod owners, so that a step takes one block of each owner and the steps go
through the blocks in order. In a step every owner sends every other one that one's columns of its
own clients' rows (all to all), or gets its clients' part of the hybrids. Beside its blocks a rank
holds what one step moves and, for methods that recall it, what it has sent until it is answered.
Rank 0 gets what was measured on a block, N x N numbers, one block after another, and clients'
features with their figures: it holds nothing of the size N x P.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from amn_mpi import blocks
from amn_mpi.blocks import Block, Scratch
from amn_mpi.comm import Communicator
from amn_mpi.left import Left
from amn_mpi.methods.base import Arrived, State
from amn_mpi.methods.mixing import Columns, Mixing
from amn_mpi.placement import Placement

NOTHING = torch.empty(0)


class Shards:
    """This rank's columns of all models, and the calls, collective ones, that work on them.

    Args:
        initial: everybody's model, (P,).

    Attributes:
        left: what this rank's clients have sent.
    """

    def __init__(
        self, comm: Communicator, placement: Placement, method: Mixing, initial: torch.Tensor
    ) -> None:
        self._comm, self._placement, self._method = comm, placement, method
        self._scratch, self.left = Scratch(), Left(comm)
        clients, kept = method.setting.clients, method.keeps(initial)
        mine = [] if comm.owner is None else method.blocks[comm.owner :: comm.owners]
        self._held = [
            Columns(
                block,
                self._start(block, initial),
                tuple(kept[own][block.columns].repeat(clients, 1) for own in method.mirrors.values()),
                NOTHING,
            )
            for block in mine
        ]
        self._sent = Scratch()

    def _start(self, block: Block, whole: torch.Tensor) -> torch.Tensor:
        """A block of the initial model, where the method needs it."""
        return whole[block.columns].clone() if self._method.from_start else NOTHING

    def mix(self, server: State, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        """Fill what this rank's members receive, (own, received, P)."""
        method = self._method
        weights = torch.empty(method.matrices, len(cohort), method.setting.clients)
        if self._comm.is_server:
            weights = method.weights_down(server, round, cohort)
        for matrix in weights:
            self._comm.broadcast(matrix.numpy())
        for step, held in self._steps():
            for k in range(len(method.mirrors)):
                self._hand_out(weights, cohort, step, held, k, out[:, k])

    def aggregate(
        self, server: State, round: int, cohort: np.ndarray, arrived: Arrived | None, up: torch.Tensor
    ) -> dict[str, Any]:
        """``Method.aggregate``; the figures are on rank 0.

        Args:
            arrived: what rank 0 knows of the round; None there leaves everything as it is.
            up: what this rank's members of the cohort returned, (own, returned, P) or more rows.
        """
        comm, method = self._comm, self._method
        dropped = comm.share(None if arrived is None else sorted(arrived.dropped))
        if dropped is None:
            return {}
        good = ~np.isin(cohort, dropped)
        measured = method.nothing_measured(round, int(good.sum()) if comm.is_server else 0)
        box = np.empty(measured.shape[1:], np.float32)
        figures = self._figures(arrived, int(good.sum()))
        for step, held in self._steps():
            found = self._take_over(round, cohort, good, step, held, up, figures)
            if not method.numbers(round):
                continue
            for block, numbers in zip(step, comm.in_turn(found, len(step), box)):
                measured[block.layer] += torch.from_numpy(numbers)
        return {} if arrived is None else method.learn(server, round, arrived, measured)

    def restore(self, server: State, state: State) -> None:
        """Go on from the state of all clients and, where there is one, from rank 0's reference."""
        method, reference = self._method, NOTHING
        if method.from_start:
            size = method.setting.layout.size
            reference = server["reference"] if self._comm.is_server else torch.empty(size)
            self._comm.broadcast(reference.numpy())
        everyone = np.arange(method.setting.clients)
        for step, held in self._steps():
            for k, (own, kind) in enumerate(zip(method.mirrors.values(), method.mirror_kinds, strict=True)):
                rows = self._columns_of(state[own][:, None], everyone, step, held, (kind,))
                if held is not None:
                    held.stacks[k].copy_(rows[:, 0])
            if held is not None:
                held.reference.copy_(self._start(held.block, reference))

    # ---- inside

    def _steps(self) -> Iterator[tuple[Sequence[Block], Columns | None]]:
        """The blocks of each step by owner, and what this rank holds of them."""
        every, owners, owner = self._method.blocks, self._comm.owners, self._comm.owner
        for start in range(0, len(every), owners):
            step = every[start : start + owners]
            mine = owner is not None and owner < len(step)
            yield step, self._held[start // owners] if mine else None
            self._comm.tick()

    def _hand_out(
        self,
        weights: torch.Tensor,
        cohort: np.ndarray,
        step: Sequence[Block],
        held: Columns | None,
        k: int,
        out: torch.Tensor,
    ) -> None:
        """One step of ``mix`` for the k-th vector, (own, P).

        What a step takes goes before the next one; where the method ``recalls``, what was made stays.
        """
        made, give = torch.empty(0), [0]
        if held is not None:
            room = self._sent_of(held, k, len(cohort)) if self._method.recalls else None
            made = blocks.mix(weights, held.stacks[k], held.block, out=room)
            give = [int(count) * held.block.size for count in self._placement.counts(cohort)]
        sizes = [len(out) * block.size for block in step]
        received = self._scratch("received", sum(sizes))
        self._swap(made, give, received, sizes)
        for block, piece in zip(step, received.split(sizes)):
            out[:, block.columns] = piece.view(len(out), block.size)

    def _take_over(
        self,
        round: int,
        cohort: np.ndarray,
        good: np.ndarray,
        step: Sequence[Block],
        held: Columns | None,
        up: torch.Tensor,
        figures: Mapping[str, np.ndarray],
    ) -> np.ndarray | None:
        """One step of ``aggregate``: what is measured on this rank's block, before its models change."""
        rows = self._columns_of(up, cohort, step, held, self._method.wire.kinds[: up.shape[1]])
        if held is None:
            return None
        members, sent = cohort[good], []
        if self._method.recalls:
            sent = [self._sent_of(held, k, len(cohort)) for k in range(len(held.stacks))]
        if not good.all():
            rows, *sent = (each[torch.from_numpy(good)] for each in (rows, *sent))
        columns = replace(held, rows=rows, sent=tuple(sent))
        found = None
        if self._method.numbers(round):
            found = self._method.measure(round, members, columns).numpy()
        self._method.take_over(members, columns, figures)
        return found

    def _sent_of(self, held: Columns, k: int, clients: int) -> torch.Tensor:
        """Where the k-th vector's columns of what the cohort received stay until it returns."""
        return self._sent(f"{held.block.start} {k}", clients, held.block.size)

    def _figures(self, arrived: Arrived | None, clients: int) -> dict[str, np.ndarray]:
        """The cohort's figures on every rank; without any, no message."""
        names = self._method.wire.figures
        numbers = np.zeros((len(names), clients))
        if arrived is not None and names:
            numbers[:] = [arrived.figures[name] for name in names]
        if names:
            self._comm.broadcast(numbers)
        return dict(zip(names, numbers))

    def _columns_of(
        self,
        own: torch.Tensor,
        cohort: np.ndarray,
        step: Sequence[Block],
        held: Columns | None,
        kinds: Sequence[str],
    ) -> torch.Tensor:
        """This rank's block of the cohort's rows, (n, returned, width).

        Args:
            own: rows of this rank's members, (own, returned, P) or more.
            kinds: what the returned vectors are.
        """
        counts, returned = self._placement.counts(cohort), own.shape[1]
        members = 0 if self._comm.owner is None else int(counts[self._comm.owner])
        width = 0 if held is None else held.block.size
        sizes = [members * returned * block.size for block in step]
        pieces = self._scratch("sent", sum(sizes))
        for block, piece in zip(step, pieces.split(sizes)):
            piece.view(members, returned, block.size).copy_(own[:members, :, block.columns])
        take = [int(count) * returned * width for count in counts]
        rows = self._scratch("received", len(cohort) if width else 0, returned, width)
        goes = sum(size for owner, size in enumerate(sizes) if owner != self._comm.owner)
        self.left.add(goes * pieces.itemsize, *kinds)
        self._swap(pieces, sizes, rows.view(-1), take)
        return rows

    def _swap(self, own: torch.Tensor, give: Sequence[int], into: torch.Tensor, take: Sequence[int]) -> None:
        """``comm.swap`` with no entries for the last owners, who hold nothing in the last step."""
        owners = self._comm.owners
        padded = [[*counts, *[0] * (owners - len(counts))] for counts in (give, take)]
        self._comm.swap(own.reshape(-1).numpy(), padded[0], into.numpy(), padded[1])
