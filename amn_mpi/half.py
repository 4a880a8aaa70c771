"""The local engine in bfloat16: forward and backward in bf16, everything that is kept in float32.

A bf16 number has 8 bits of precision: a step smaller than a 256th of a weight would be lost in it. So
the model stays the flat float32 vector, which a step of SGD changes; before every pass it is rounded
into a bf16 copy that the network reads (mixed precision with master weights, Micikevicius et al.,
ICLR 2018). bf16 has float32's range: losses need no scaling. Scores are made float32 before the loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from amn_mpi import config, heap
from amn_mpi.local import Engine
from amn_mpi.params import ParameterLayout, point


class HalfEngine(Engine):
    """The reference engine with a bf16 copy of the network; see ``Engine`` for the arguments.

    Batch normalisation keeps its parameters and running statistics in float32 (torch's kernels take
    them beside bf16 samples): running averages would lose small changes as weights do.
    Evaluation runs in bf16, too: a client would use its model as it was trained.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: ParameterLayout,
        local: config.Local,
        shape: tuple[int, ...],
        eval_batch: int,
        device: torch.device,
        tick: Callable[[], None],
    ) -> None:
        super().__init__(module, layout, local, shape, eval_batch, device, tick)
        heap.keep()
        self._dense = None
        self._half = torch.empty(layout.trained, dtype=torch.bfloat16, device=device)
        self.module = _pooled_first(copy.deepcopy(self.module))
        # Every parameter, and where its gradient belongs in the workspace.
        self._into: list[tuple[nn.Parameter, torch.Tensor]] = []
        for tensor in layout.tensors:
            wide = tensor.name.rpartition(".")[0] in layout.normalised
            point(self.module, layout, tensor, self.parameters if wide else self._half)
            if tensor.start < layout.trained:
                piece = self.gradients[tensor.start : tensor.start + tensor.size]
                self._into.append((self.module.get_parameter(tensor.name), piece.view(tensor.shape)))
        self._format = _memory_format(self.module)

    def _chunks(self, x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[int, float]]:
        self._half.copy_(self._w)
        yield from super()._chunks(x, y)

    def _backward(self) -> None:
        self._half.copy_(self._w)
        super()._backward()

    def _forward(self, size: int) -> torch.Tensor:
        scores = self.module(self._x[:size].to(torch.bfloat16, memory_format=self._format))
        return scores.float()

    def _differentiate(self, loss: torch.Tensor, add: bool = False) -> None:
        into = [pair for pair in self._into if pair[0].requires_grad]
        if not add and len(into) < len(self._into):
            self.gradients.zero_()
        found = torch.autograd.grad(loss, [parameter for parameter, _ in into])
        for (_, gradient), new in zip(into, found):
            if add:
                gradient.add_(new)
            else:
                gradient.copy_(new)  # a pass over memory less than adding to zeros


def _pooled_first(module: nn.Module) -> nn.Module:
    """Max-pooling before ReLU instead of after it: the same numbers, and ReLU has fewer of them."""
    if isinstance(module, nn.Sequential):
        for k in range(len(module) - 1):
            if type(module[k]) is nn.ReLU and type(module[k + 1]) is nn.MaxPool2d:
                module[k], module[k + 1] = module[k + 1], module[k]
    return module


def _memory_format(module: nn.Module) -> torch.memory_format:
    """Channels last is what bf16 convolutions are fastest with; group normalisation is slow with it."""
    kinds = {type(layer) for layer in module.modules()}
    if nn.Conv2d in kinds and nn.GroupNorm not in kinds:
        return torch.channels_last
    return torch.preserve_format
