"""The local engine: SGD on a flat vector, gradients, losses and accuracies.

Every client of a rank, and every rank, works in the same kind of workspace: buffers that start at
64-byte boundaries, the same batch shapes, the same kernels. Kernels may round differently at
other offsets, so this is what makes a result independent of who computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional

from amn_mpi import config
from amn_mpi.params import ParameterLayout, bind


class Engine:
    """One model workspace that all clients of a rank pass through, one by one.

    Args:
        module: the network; its parameters become views of the workspace.
        local: batch size, epochs or steps, SGD's options.
        shape: of one sample.
        eval_batch: samples a forward pass when nothing is learnt.
        tick: called after every step (liveness, signals).
    """

    name = "sequential"

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
        self._velocity = torch.zeros_like(self.parameters) if local.momentum else None
        size = max(local.batch_size, eval_batch)
        self._x = torch.empty((size, *shape), device=device)
        self._y = torch.empty(size, dtype=torch.int64, device=device)
        self._eval_batch = eval_batch

    def train(
        self,
        start: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        generator: np.random.Generator,
    ) -> torch.Tensor:
        """E epochs (or K steps) of SGD from ``start``, shape (P,), on the samples given.

        Returns:
            The workspace vector, shape (P,): copy it before the next call to the engine.
        """
        self.parameters.copy_(start)
        if self._velocity is not None:
            self._velocity.zero_()
        for batch in self._batches(len(y), generator):
            size = len(batch)
            torch.index_select(x, 0, batch, out=self._x[:size])
            torch.index_select(y, 0, batch, out=self._y[:size])
            self._backward(size)
            self._descend()
            self.tick()
        return self.parameters

    def gradient(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Gradient of the mean loss over the samples at ``at``: the workspace's, shape (P,)."""
        self.parameters.copy_(at)
        self.gradients.zero_()
        for size, part in self._chunks(x, y):
            loss = functional.cross_entropy(self.module(self._x[:size]), self._y[:size])
            (loss * part).backward()
        return self.gradients

    def loss(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
        """Mean cross-entropy over the samples at ``at``."""
        self.parameters.copy_(at)
        total = 0.0
        with torch.no_grad():
            for size, part in self._chunks(x, y):
                out = self.module(self._x[:size])
                total += part * float(functional.cross_entropy(out, self._y[:size]))
        return total

    def correct(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> int:
        """How many samples the model at ``at`` classifies rightly."""
        self.parameters.copy_(at)
        total = 0
        with torch.no_grad():
            for size, _ in self._chunks(x, y):
                total += int((self.module(self._x[:size]).argmax(1) == self._y[:size]).sum())
        return total

    def steps(self, samples: int) -> int:
        """Steps of SGD in one round of a client with so many samples."""
        each = -(-samples // self.local.batch_size)
        return self.local.steps or each * self.local.epochs

    def _batches(self, samples: int, generator: np.random.Generator) -> Iterator[torch.Tensor]:
        size, left = self.local.batch_size, self.steps(samples)
        while left > 0:
            order = torch.from_numpy(generator.permutation(samples)).to(self.device)
            for start in range(0, samples, size)[:left]:
                yield order[start : start + size]
            left -= -(-samples // size)

    def _chunks(self, x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[int, float]]:
        """Copy chunk after chunk into the workspace; yields (size, share of all samples)."""
        for start in range(0, len(y), self._eval_batch):
            size = min(self._eval_batch, len(y) - start)
            self._x[:size].copy_(x[start : start + size])
            self._y[:size].copy_(y[start : start + size])
            yield size, size / len(y)
            self.tick()

    def _backward(self, size: int) -> None:
        self.gradients.zero_()
        functional.cross_entropy(self.module(self._x[:size]), self._y[:size]).backward()

    def _descend(self) -> None:
        local, step = self.local, self.gradients
        if local.weight_decay:
            step.add_(self.parameters, alpha=local.weight_decay)
        if self._velocity is not None:
            step = self._velocity.mul_(local.momentum).add_(step)
        self.parameters.sub_(step, alpha=local.lr)
