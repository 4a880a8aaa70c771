"""The local engine in C: whole passes over a client's samples in one call (``native/steps.c``).

For networks of the form [convolution, ReLU, 2x2 max-pooling]*, [linear, ReLU]*, linear on the
CPU, with or without batch normalisation before a ReLU; others keep the reference engine. Everything but
the arithmetic stays the reference engine's.

The instruction set ``avx512bf16`` computes in bfloat16 what the others do in float32. Rounded, to the
nearest, are every layer's inputs and weights, in training and evaluation, forward and backward; and in
the backward of linear layers the gradient of their outputs. Products are summed in float32; biases, scores,
losses, gradients and the vectors given stay float32.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from amn_mpi import config, native
from amn_mpi.local import Engine
from amn_mpi.methods.base import Pull
from amn_mpi.params import ParameterLayout, Part
from amn_mpi.specification import BIAS, NORM, OUTPUTS, WEIGHT, specification

CHUNK = 64  # samples that pass through the network together: their activations stay in the caches
PAUSE = 0.02  # seconds between two calls of ``tick``, roughly


def fits(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the compiled engine can train the module here on samples of this shape."""
    return bool(native.available()) and specification(module, shape) is not None


class Network:
    """A network with its buffers, in one instruction set; vectors are its flat parameters.

    Tensors given are on the CPU, contiguous, float32, labels int64; they are not kept.

    Args:
        most: samples that its buffers hold.
        instructions: an instruction set instead of the best that computes in float32.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], most: int, instructions: str = "") -> None:
        found = specification(module, shape)
        if found is None:
            raise ValueError("not a network that the compiled engine knows")
        self._c = native.functions(instructions)
        self.instructions, self.normalised = self._c.instructions, bool((found[:, NORM] >= 0).any())
        if self.normalised and native.PRECISION[self.instructions] != "fp32":
            raise ValueError(f"{self.instructions}: batch normalisation is computed in float32")
        self.specification, self.classes = found, int(found[-1, OUTPUTS])
        self._net = self._c.new(found.ctypes.data, len(found), most)
        if not self._net:
            raise MemoryError(f"no memory for the activations of {most} samples")
        weakref.finalize(self, self._c.free, self._net)

    def scores(self, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Scores (logits) of samples (n, ...), shape (n, C)."""
        out = torch.empty(len(x), self.classes)
        self._c.scores(self._net, w.data_ptr(), x.data_ptr(), len(x), out.data_ptr())
        return out

    def judge(self, w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        """(sum of the samples' losses, number of right answers)."""
        loss, right = ctypes.c_double(), ctypes.c_int64()
        self._check(
            self._c.judge(
                self._net,
                w.data_ptr(),
                x.data_ptr(),
                y.data_ptr(),
                len(y),
                ctypes.addressof(loss),
                ctypes.addressof(right),
            )
        )
        return loss.value, right.value

    def slope(
        self,
        w: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        scale: float,
        g: torch.Tensor,
        *,
        add: bool = False,
        scores: torch.Tensor | None = None,
        trained: np.ndarray | None = None,
        own: bool = False,
    ) -> None:
        """Gradient, (P,), of ``scale`` times the sum of the samples' losses: into ``g``, or added.

        Args:
            scores: (n, C), to be filled.
            trained: a flag (uint8) a layer, then, in a normalised network, one a layer's batch
                normalisation; gradients of the others are left alone, and what lies below the lowest
                trained layer is not computed.
            own: batch normalisation goes by the samples' own statistics, which move the running
                ones in ``w``; there have to be two at least, and room for all at once.
        """
        self._check(
            self._c.slope(
                self._net,
                w.data_ptr(),
                x.data_ptr(),
                y.data_ptr(),
                len(y),
                scale,
                g.data_ptr(),
                add,
                None if scores is None else scores.data_ptr(),
                None if trained is None else trained.ctypes.data,
                w.data_ptr() if own and self.normalised else None,
            )
        )

    def train(
        self,
        w: torch.Tensor,
        g: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        order: np.ndarray,
        batch: int,
        rule: native.Rule,
        trained: np.ndarray | None = None,
    ) -> None:
        """SGD in place on ``w``, (P,), over batches of the samples ``order`` (int64, contiguous).

        Args:
            g: (P,) of scratch.
        """
        self._check(
            self._c.train(
                self._net,
                w.data_ptr(),
                g.data_ptr(),
                x.data_ptr(),
                y.data_ptr(),
                len(y),
                order.ctypes.data,
                len(order),
                batch,
                ctypes.byref(rule),
                None if trained is None else trained.ctypes.data,
            )
        )

    def _check(self, status: int) -> None:
        if status == 2:
            raise ValueError("batch normalisation needs two samples at least and room for the whole batch")
        if status:
            raise IndexError(f"a label is not one of {self.classes} classes, or a sample is not there")


class CompiledEngine(Engine):
    """The reference engine with its arithmetic in C.

    ``tick`` is called every few hundredths of a second instead of after every step.

    Args:
        instructions: an instruction set instead of the best that runs here and computes in float32.
    """

    name = "compiled"

    def __init__(
        self,
        module: nn.Module,
        layout: ParameterLayout,
        local: config.Local,
        shape: tuple[int, ...],
        eval_batch: int,
        device: torch.device,
        tick: Callable[[], None],
        instructions: str = "",
    ) -> None:
        super().__init__(module, layout, local, shape, eval_batch, device, tick)
        self._dense = None
        # A batch that is normalised by its statistics passes through the network at once.
        most = max(local.batch_size, min(eval_batch, 32))
        if not self._statistics:
            most = min(most, CHUNK)
        self.network = Network(self.module, shape, most, instructions)
        self._out = torch.empty(local.batch_size, self.network.classes)
        self._pace = 1  # batches a call

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
        trained = self._layers(only)
        if trained is None:
            return super().train(start, x, y, generator, epochs=epochs, pull=pull, shift=shift, only=only)
        self.parameters.copy_(start)
        nothing = only is not None and not only.size
        if nothing or not (trained.any() or self._statistics):  # running statistics follow all the same
            return self.parameters
        x, y, size = _plain(x), _plain(y, torch.int64), self.local.batch_size
        if self._velocity is not None:
            self._velocity.zero_()
        anchor = None if pull is None or not pull.strength else _plain(pull.anchor)
        shift = None if shift is None else _plain(shift)
        rule = native.Rule(
            self.local.lr,
            self.local.momentum,
            self.local.weight_decay,
            0.0 if pull is None else pull.strength,
            *(None if vector is None else vector.data_ptr() for vector in (anchor, shift, self._velocity)),
        )
        left = self.steps(len(y), epochs)
        while left > 0:
            order = np.ascontiguousarray(generator.permutation(len(y)), dtype=np.int64)[: left * size]
            at = 0
            while at < len(order):
                some, began = order[at : at + self._pace * size], time.perf_counter()
                self.network.train(self.parameters, self.gradients, x, y, some, size, rule, trained)
                at += len(some)
                batches = -(-len(some) // size)
                left -= batches
                each = (time.perf_counter() - began) / batches
                self._pace = max(1, min(4 * self._pace, int(PAUSE / max(each, 1e-6))))
                self.tick()
        return self.parameters

    def solve(self, steps: int, lr: float, pull: Pull) -> None:
        n, anchor = self._size, _plain(pull.anchor)
        rule = native.Rule(lr, 0.0, self.local.weight_decay, pull.strength, anchor.data_ptr())
        order, w, g = np.tile(np.arange(n), steps), self.parameters, self.gradients
        self.network.train(w, g, self._x[:n], self._y[:n], order, n, rule)

    def gradient(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.parameters.copy_(at)
        if not len(y):
            return self.gradients.zero_()
        self.gradients[self.layout.trained :] = 0.0
        x, y, w, g = _plain(x), _plain(y, torch.int64), self.parameters, self.gradients
        for first in range(0, len(y), self._eval_batch):
            part = slice(first, first + self._eval_batch)
            self.network.slope(w, x[part], y[part], 1 / len(y), g, add=first > 0)
            self.tick()
        return self.gradients

    def loss(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
        return self._judge(at, x, y)[0] / max(len(y), 1)

    def correct(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> int:
        return self._judge(at, x, y)[1]

    # ---- inside

    def _judge(self, at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[float, int]:
        self.parameters.copy_(at)
        x, y, loss, right = _plain(x), _plain(y, torch.int64), 0.0, 0
        for first in range(0, len(y), self._eval_batch):
            part = slice(first, first + self._eval_batch)
            more, ones = self.network.judge(self.parameters, x[part], y[part])
            loss, right = loss + more, right + ones
            self.tick()
        return loss, right

    def _backward(self) -> None:
        n, out = self._size, self._out[: self._size]
        w, g = self.parameters, self.gradients
        g[self.layout.trained :] = 0.0  # whatever a method has made of it
        self.network.slope(w, self._x[:n], self._y[:n], 1 / n, g, scores=out, own=self._statistics and n > 1)
        self._scores = out

    def _layers(self, only: Part | None) -> np.ndarray | None:
        """A flag a layer, whether it is trained, and a flag a layer's batch normalisation; None if one of
        them is trained in part."""
        rows = self.network.specification
        flags = np.ones(2 * len(rows), dtype=np.uint8)
        if only is None:
            return flags
        for k, row in enumerate(rows):
            outputs, norm = int(row[OUTPUTS]), int(row[NORM])
            normalised = (norm, norm + 2 * outputs) if norm >= 0 else (0, 0)
            ranges = ((int(row[WEIGHT]), int(row[BIAS]) + outputs), normalised)
            for flag, (start, stop) in zip((k, len(rows) + k), ranges):
                inside = sum(max(0, min(stop, b) - max(start, a)) for a, b in only.ranges)
                if inside not in (0, stop - start):
                    return None
                flags[flag] = inside > 0
        return flags


def _plain(tensor: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As C reads it; the tensor itself where it is so already."""
    return tensor.detach().to("cpu", dtype).contiguous()
