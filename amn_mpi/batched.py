"""The batched engine: a rank's clients trained together, their models in stacks.

A method's ``local_update`` stays ordinary code for one client. Each client of a group runs it with a
``Seat``, which looks like the reference engine; where the seat has to compute it asks for that, and
what all clients of the group ask for is computed at once (``baton.py``). A whole local training
is one such request.

Sums are taken in another order than by the other engines, and in which group a client is depends
on the ranks: results agree to rounding, not bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn import functional

from amn_mpi import baton, config, stacked
from amn_mpi.baton import Ask, Request
from amn_mpi.local import Engine, descend
from amn_mpi.lockstep import Samples, Step, in_lockstep, in_order, shuffled
from amn_mpi.methods.base import Pull
from amn_mpi.params import ParameterLayout, Part

T = TypeVar("T")


class BatchedEngine(Engine):
    """The reference engine, and many of its workspaces side by side for a group of clients.

    Outside a group (``together``) it is the reference engine.

    Args:
        at_once: the most clients of a group.
    """

    name = "batched"

    def __init__(
        self,
        module: torch.nn.Module,
        layout: ParameterLayout,
        local: config.Local,
        shape: tuple[int, ...],
        eval_batch: int,
        device: torch.device,
        tick: Callable[[], None],
        at_once: int,
    ) -> None:
        super().__init__(module, layout, local, shape, eval_batch, device, tick)
        self.at_once, self.shape = at_once, shape
        self._network = stacked.network(self.module, layout)
        self._stacks = torch.empty(2, 0, layout.size, device=device)  # models and gradients
        self._seats: list[Seat] = []

    @property
    def workspaces(self) -> list[torch.Tensor]:
        return [*super().workspaces, self._stacks]

    def together(self, turns: Sequence[Callable[[Engine], T]], steps: Sequence[int]) -> list[T]:
        if len(turns) > len(self._seats):
            self._stacks = torch.zeros(2, len(turns), self.layout.size, device=self.device)
            self._seats = [Seat(self, row, *self._stacks[:, row]) for row in range(len(turns))]
        # Who has most steps sits first: then those that are not done are the first rows of the stacks.
        longest = sorted(range(len(turns)), key=lambda k: -steps[k])
        seats = {k: self._seats[row] for row, k in enumerate(longest)}
        works = [partial(seats[k].take, turn) for k, turn in enumerate(turns)]
        return baton.together(works, self._meet)

    @property
    def chunk(self) -> int:
        """Samples of a client at a time where nothing is learnt: ``eval_batch`` for all together."""
        return max(self._eval_batch // max(1, len(self._seats)), self.local.batch_size)

    # ---- what seats ask for: clients that want the same, those with most steps first

    def train_all(
        self, asked: Sequence[Asked], strength: float, shifted: bool, only: Part | None
    ) -> list[torch.Tensor]:
        """SGD on every client's row of the stacks, from what is in it."""
        trained = self.layout.trained
        with self._rows(asked) as (w, g):
            velocity = torch.zeros_like(w) if self.local.momentum else None
            anchors = self._stacked([a.anchor for a in asked]) if strength else None
            shifts = self._stacked([a.shift for a in asked]) if shifted else None
            for k, x, y, share in self._lockstep(asked):
                self._network.backward(w[:k], g[:k], x, y, share, only)
                descend(
                    self.local,
                    w[:k, :trained],
                    g[:k, :trained],
                    None if velocity is None else velocity[:k, :trained],
                    None if anchors is None else Pull(anchors[:k, :trained], strength),
                    None if shifts is None else shifts[:k, :trained],
                    only,
                )
                self.tick()
        return [a.seat.parameters for a in asked]

    def slope_all(self, asked: Sequence[Asked]) -> list[torch.Tensor]:
        """Gradients of one batch; returns its scores."""
        with self._rows(asked) as (w, g):
            (_, x, y, share), *_ = self._lockstep(asked)
            scores = self._network.backward(w, g, x, y, share)
        self.tick()
        return list(scores)

    def gradient_all(self, asked: Sequence[Asked]) -> list[torch.Tensor]:
        """Gradients of the mean losses over all samples."""
        with self._rows(asked) as (w, g):
            g.zero_()
            part = torch.empty_like(g)
            for k, x, y, share in self._lockstep(asked, whole=True):
                self._network.backward(w[:k], part[:k], x, y, share)
                g[:k].add_(part[:k])
                self.tick()
        return [a.seat.gradients for a in asked]

    def judge_all(self, asked: Sequence[Asked]) -> list[tuple[float, int]]:
        """(mean loss, number of right answers) of each."""
        losses = torch.zeros(len(asked), dtype=torch.float64, device=self.device)
        right = torch.zeros(len(asked), dtype=torch.int64, device=self.device)
        with torch.no_grad(), self._rows(asked) as (w, _):
            for k, x, y, share in self._lockstep(asked, whole=True):
                scores = self._network.scores(w[:k], x)
                losses[:k] += _losses(scores, y, share)
                right[:k] += ((scores.argmax(2) == y) & (share > 0)).sum(1)
                self.tick()
        return list(zip(losses.tolist(), right.tolist()))

    # ---- inside

    def _meet(self, waiting: Mapping[int, Request]) -> dict[int, Any]:
        """Do what some of the clients wait for: those that want the same.

        Whole trainings come last: who is still on the way to one then trains together with the others.
        """
        kinds: dict[Any, list[int]] = {}
        for number, request in waiting.items():
            kinds.setdefault(request.kind, []).append(number)
        kind = min(kinds, key=lambda kind: kind[0] == self.train_all)
        work, *common = kind
        numbers = sorted(kinds[kind], key=lambda k: waiting[k].what.place)
        return dict(zip(numbers, work([waiting[k].what for k in numbers], *common)))

    @contextmanager
    def _rows(self, asked: Sequence[Asked]) -> Iterator[torch.Tensor]:
        """Models and gradients of some clients, (2, k, P); copies unless they are the first rows."""
        rows = [a.seat.row for a in asked]
        if rows == list(range(len(rows))):
            yield self._stacks[:, : len(rows)]
            return
        where = torch.tensor(rows, device=self.device)
        some = self._stacks.index_select(1, where)
        yield some
        self._stacks.index_copy_(1, where, some)

    def _lockstep(self, asked: Sequence[Asked], whole: bool = False) -> Iterator[Step]:
        return in_lockstep([a.samples for a in asked], self.device, whole)

    def _stacked(self, vectors: Sequence[Any]) -> torch.Tensor:
        """(k, P), or an expanded (1, P) where all are the same vector, such as a broadcast model."""
        if len({vector.data_ptr() for vector in vectors}) == 1:
            return vectors[0].to(self.device).expand(len(vectors), -1)
        return torch.stack([vector.to(self.device) for vector in vectors])


def _losses(scores: torch.Tensor, y: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """(k,): every client's sum over its batch of losses, each times the sample's share."""
    each = functional.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none")
    return (each.view(share.shape) * share).sum(1)


class Asked(NamedTuple):
    """What a seat wants computed with its row of the stacks."""

    seat: Seat
    samples: Samples
    anchor: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Most steps first, and then as they sit."""
        return -len(self.samples.order), self.seat.row


class Seat(Engine):
    """The engine as one client of a group sees it: rows of the stacks are its workspace.

    What it only copies is done in the client's thread, what it computes in the engine's.
    """

    name = "batched"

    def __init__(
        self, engine: BatchedEngine, row: int, parameters: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        self.row, self.parameters, self.gradients = row, parameters, gradients
        self.module, self.layout, self.local = engine.module, engine.layout, engine.local
        self.device = engine.device
        self.tick = lambda: None  # the engine's own, after what is asked for
        self._engine, self._size = engine, 0
        self._x = torch.zeros(self.local.batch_size, *engine.shape, device=self.device)
        self._y = torch.zeros(self.local.batch_size, dtype=torch.int64, device=self.device)
        self._scores = torch.zeros(0)
        self._ask: Ask

    def take(self, turn: Callable[[Engine], T], ask: Ask) -> T:
        """A client's turn in this seat."""
        self._ask = ask
        return turn(self)

    def train(
        self,
        start: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        generator: np.random.Generator,
        *,
        epochs: int = 0,
        pull: Pull | None = None,
        shift: torch.Tensor | None = None,
        only: Part | None = None,
    ) -> torch.Tensor:
        self.parameters.copy_(start)
        if only is not None and not only.size:
            return self.parameters
        order = shuffled(len(y), self.local.batch_size, self.steps(len(y), epochs), generator)
        anchor, strength = pull or (None, 0.0)
        what = Asked(self, Samples(x, y, order), anchor, shift)
        kind = (self._engine.train_all, strength, shift is not None, only)
        return self._ask(Request(kind, what))

    def slope(self, at: torch.Tensor, decay: bool = True) -> torch.Tensor:
        x, y = self._x[: self._size], self._y[: self._size]
        self._scores = self._answer(self._engine.slope_all, at, x, y, self._size)[: self._size]
        if decay and self.local.weight_decay:
            self.gradients.add_(self.parameters, alpha=self.local.weight_decay)
        return self.gradients

    def gradient(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._answer(self._engine.gradient_all, at, x, y, self._engine.chunk)

    def loss(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
        return self._answer(self._engine.judge_all, at, x, y, self._engine.chunk)[0]

    def correct(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> int:
        return self._answer(self._engine.judge_all, at, x, y, self._engine.chunk)[1]

    def _answer(self, work: Any, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor, size: int) -> Any:
        """Of the engine, about the model ``at`` and samples in batches of ``size``."""
        if at is not self.parameters:
            self.parameters.copy_(at)
        return self._ask(Request((work,), Asked(self, Samples(x, y, in_order(len(y), size)))))
