"""The local engine: SGD on a flat vector, gradients, losses and accuracies.

Every client of a rank, and every rank, works in the same kind of workspace: buffers that start at
64-byte boundaries, the same batch shapes, the same kernels. Kernels may round differently at
other offsets, so this is what makes a result independent of who computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional

from amn_mpi import config
from amn_mpi.dense import Dense
from amn_mpi.methods.base import Pull
from amn_mpi.params import ParameterLayout, Part, bind

T = TypeVar("T")


class Engine:
    """One model workspace that all clients of a rank pass through, one by one.

    Args:
        module: the network; its parameters become views of the workspace.
        local: batch size, epochs or steps, SGD's options.
        shape: of one sample.
        eval_batch: samples a forward pass when nothing is learnt.
        tick: called after every step (liveness, signals).

    Attributes:
        at_once: how many clients' turns ``together`` takes at most.
    """

    name = "torch"
    at_once = 1

    def __init__(
        self,
        module: torch.nn.Module,
        layout: ParameterLayout,
        local: config.Local,
        shape: tuple[int, ...],
        eval_batch: int,
        device: torch.device,
        tick: Callable[[], None],
    ) -> None:
        self.module = module.to(device)
        self.layout, self.local, self.device, self.tick = layout, local, device, tick
        self.parameters, self.gradients = bind(self.module, layout)
        self._w, self._g = self.parameters[: layout.trained], self.gradients[: layout.trained]
        self._statistics = layout.trained < layout.size
        self._velocity = torch.zeros_like(self._w) if local.momentum else None
        size = max(local.batch_size, eval_batch)
        self._x = torch.empty((size, *shape), device=device)
        self._y = torch.empty(size, dtype=torch.int64, device=device)
        self._dense = Dense(self.module) if Dense.fits(self.module) else None
        self._eval_batch, self._size = eval_batch, 0
        self._scores = torch.zeros(0)

    @property
    def workspaces(self) -> list[torch.Tensor]:
        """What the next client's turn overwrites."""
        return [self.parameters, self.gradients]

    def together(self, turns: Sequence[Callable[[Engine], T]], steps: Sequence[int]) -> list[T]:
        """The turns of some clients, each given the engine; what they return, in their order.

        Args:
            steps: of each client's local training, by which they may be arranged.
        """
        return [turn(self) for turn in turns]

    # ---- a whole local training

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
        """E epochs (or K steps) of SGD from ``start``, shape (P,), on the samples given.

        Args:
            epochs: so many passes instead of the configured epochs or steps.
            pull: a proximal term.
            shift: (P,), added to every gradient.
            only: parameters that are trained; the others stay as they are (running statistics
                follow the batches all the same).

        Returns:
            The workspace vector, shape (P,): copy it before the next call to the engine.
        """
        self.parameters.copy_(start)
        if only is not None and not only.size:
            return self.parameters
        if self._velocity is not None:
            self._velocity.zero_()
        trained = self.layout.trained
        if pull is not None:
            pull = Pull(pull.anchor.to(self.device)[:trained], pull.strength)
        shift = None if shift is None else shift.to(self.device)[:trained]
        with self._frozen_but(only):
            for _ in self.batches(x, y, generator, epochs):
                self._backward()
                descend(self.local, self._w, self._g, self._velocity, pull, shift, only)
        return self.parameters

    def steps(self, samples: int, epochs: int = 0) -> int:
        """Steps of SGD in one round of a client with so many samples."""
        each = -(-samples // self.local.batch_size)
        return each * epochs if epochs else self.local.steps or each * self.local.epochs

    # ---- for methods whose step is not SGD's

    def vector(self, source: torch.Tensor) -> torch.Tensor:
        """A copy where clients train, for a method to work on."""
        return source.to(self.device, copy=True)

    def batches(
        self, x: torch.Tensor, y: torch.Tensor, generator: np.random.Generator, epochs: int = 0
    ) -> Iterator[int]:
        """Load batch after batch, as ``train`` does; yields its number of samples.

        Lengths: ``local.steps`` batches, or ``local.epochs`` (or ``epochs``) passes, each pass in
        a new order.
        """
        size, left = self.local.batch_size, self.steps(len(y), epochs)
        while left > 0:
            order = torch.from_numpy(generator.permutation(len(y))).to(self.device)
            for first in range(0, len(y), size)[:left]:
                batch = order[first : first + size]
                self._size = len(batch)
                torch.index_select(x, 0, batch, out=self._x[: self._size])
                torch.index_select(y, 0, batch, out=self._y[: self._size])
                yield self._size
                self.tick()
            left -= -(-len(y) // size)

    def slope(self, at: torch.Tensor, decay: bool = True) -> torch.Tensor:
        """Gradient, (P,), of the loaded batch's mean loss (and of weight decay) at ``at``, (P,).

        ``at`` may be the workspace itself; the batch's running statistics are written back to it.

        Returns:
            The workspace's gradient: use it before the next call to the engine.
        """
        if at is not self.parameters:
            self.parameters.copy_(at)
        self._backward()
        if decay and self.local.weight_decay:
            self._g.add_(self._w, alpha=self.local.weight_decay)
        if self._statistics and at is not self.parameters:
            at[self.layout.trained :] = self.parameters[self.layout.trained :]
        return self.gradients

    def solve(self, steps: int, lr: float, pull: Pull) -> None:
        """So many gradient steps of size ``lr`` on the loaded batch, weight decay included, under a
        proximal term: from the workspace's model, and in it."""
        w, trained = self.parameters, slice(0, self.layout.trained)
        for _ in range(steps):
            slope = self.slope(w)
            w[trained] -= lr * (slope + pull.strength * (w - pull.anchor))[trained]

    def batch_loss(self) -> float:
        """Mean loss of the loaded batch where ``slope`` was taken last."""
        return float(functional.cross_entropy(self._scores, self._y[: self._size]))

    # ---- without learning

    def gradient(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Gradient of the mean loss over the samples at ``at``: the workspace's, shape (P,)."""
        self.parameters.copy_(at)
        self.gradients.zero_()
        for size, part in self._chunks(x, y):
            loss = functional.cross_entropy(self._forward(size), self._y[:size]) * part
            self._differentiate(loss, add=True)
        return self.gradients

    def loss(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
        """Mean cross-entropy over the samples at ``at``."""
        self.parameters.copy_(at)
        total = 0.0
        with torch.no_grad():
            for size, part in self._chunks(x, y):
                total += part * float(functional.cross_entropy(self._forward(size), self._y[:size]))
        return total

    def correct(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> int:
        """How many samples the model at ``at`` classifies rightly."""
        self.parameters.copy_(at)
        total = 0
        with torch.no_grad():
            for size, _ in self._chunks(x, y):
                total += int((self._forward(size).argmax(1) == self._y[:size]).sum())
        return total

    # ---- inside

    def _chunks(self, x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[int, float]]:
        """Copy chunk after chunk into the workspace; yields (size, share of all samples)."""
        if self._statistics:
            self.module.eval()
        for start in range(0, len(y), self._eval_batch):
            size = min(self._eval_batch, len(y) - start)
            self._x[:size].copy_(x[start : start + size])
            self._y[:size].copy_(y[start : start + size])
            yield size, size / len(y)
            self.tick()

    def _backward(self) -> None:
        if self._dense is not None:
            self._scores = self._dense.backward(self._x[: self._size], self._y[: self._size])
            return
        if self._statistics:
            # One sample has no statistics of its own: it passes by the running ones.
            self.module.train(self._size > 1)
        scores = self._forward(self._size)
        self._differentiate(functional.cross_entropy(scores, self._y[: self._size]))
        self._scores = scores.detach()

    def _forward(self, size: int) -> torch.Tensor:
        """Scores of the first samples in the workspace, (size, C) float32."""
        return self.module(self._x[:size])

    def _differentiate(self, loss: torch.Tensor, add: bool = False) -> None:
        """The loss's gradient into the workspace's, or added to it; 0 where nothing is trained."""
        if not add:
            self.gradients.zero_()
        loss.backward()

    @contextmanager
    def _frozen_but(self, only: Part | None) -> Iterator[None]:
        """Gradients are not computed for what is not trained."""
        frozen = []
        if only is not None:
            tensors = self.layout.tensors
            frozen = [
                parameter
                for tensor, parameter in zip(tensors, self.module.parameters())
                if not any(start <= tensor.start < stop for start, stop in only.ranges)
            ]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)


def descend(
    local: config.Local,
    w: torch.Tensor,
    step: torch.Tensor,
    velocity: torch.Tensor | None,
    pull: Pull | None,
    shift: torch.Tensor | None,
    only: Part | None,
) -> None:
    """One step of SGD on a model or a stack of models, in place; the gradient is overwritten."""
    if local.weight_decay:
        step.add_(w, alpha=local.weight_decay)
    if pull is not None and pull.strength:
        step.add_(w - pull.anchor, alpha=pull.strength)
    if shift is not None:
        step.add_(shift)
    if velocity is not None:
        step = velocity.mul_(local.momentum).add_(step)
    if only is None:
        w.sub_(step, alpha=local.lr)
        return
    for start, stop in only.ranges:
        w[..., start:stop].sub_(step[..., start:stop], alpha=local.lr)
