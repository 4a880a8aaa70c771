"""Networks with the parameters of many clients: one forward and one backward for all of them.

Parameters and gradients are stacks (k, P) of flat vectors, samples (k, b, ...), labels (k, b). A
sample counts by its share: 1 / b in the mean over a batch of b, 0 where a client has fewer.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from amn_mpi.dense import fully_connected
from amn_mpi.params import ParameterLayout, Part, Tensor


class Network(Protocol):
    """What the batched engine needs of a model."""

    def scores(self, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Scores (logits), (k, b, C)."""

    def backward(
        self,
        w: torch.Tensor,
        g: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        share: torch.Tensor,
        only: Part | None = None,
    ) -> torch.Tensor:
        """Write into ``g`` the gradient of each client's sum of share x loss; returns the scores.

        Gradients of tensors outside ``only`` are not computed and not touched.
        """


def network(module: nn.Module, layout: ParameterLayout) -> Network:
    """Written out for fully connected networks, by ``vmap`` for others."""
    return Layers(module, layout) if fully_connected(module) else Mapped(module, layout)


class Layers:
    """A ``Sequential`` of Flatten, Linear and ReLU, ending in a Linear, by batched products.

    Its operands and results are views of the stacks.
    """

    def __init__(self, module: nn.Module, layout: ParameterLayout) -> None:
        tensors = layout.tensors
        self._layers = list(zip(tensors[::2], tensors[1::2]))

    def scores(self, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._forward(w, x)[-1]

    def backward(
        self,
        w: torch.Tensor,
        g: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        share: torch.Tensor,
        only: Part | None = None,
    ) -> torch.Tensor:
        *inputs, scores = self._forward(w, x)
        chance = torch.log_softmax(scores, 2)
        outer = torch.zeros_like(chance).scatter_(2, y.unsqueeze(2), -share.unsqueeze(2))
        slope = torch.ops.aten._log_softmax_backward_data(outer, chance, 2, chance.dtype)
        trained = [_inside(weight.start, only) for weight, _ in self._layers]
        for k in range(len(trained) - 1, trained.index(True) - 1, -1):
            weight, bias = self._layers[k]
            if trained[k]:
                torch.bmm(slope.transpose(1, 2), inputs[k], out=_view(g, weight))
                torch.sum(slope, 1, out=_view(g, bias))
            if k > trained.index(True):
                slope = torch.ops.aten.threshold_backward(slope @ _view(w, weight), inputs[k], 0)
        return scores

    def _forward(self, w: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        """What goes into each layer, and the scores."""
        found = [x.flatten(2)]
        for weight, bias in self._layers:
            across = _view(w, weight).transpose(1, 2)
            found.append(torch.baddbmm(_view(w, bias).unsqueeze(1), found[-1], across))
            if weight is not self._layers[-1][0]:
                found[-1].relu_()
        return found


class Mapped:
    """Any module without running statistics: ``vmap`` over clients, and autograd."""

    def __init__(self, module: nn.Module, layout: ParameterLayout) -> None:
        self._module, self._tensors = module, layout.tensors
        self._one = vmap(lambda tensors, x: functional_call(module, tensors, (x,)))

    def scores(self, w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._one({tensor.name: _view(w, tensor) for tensor in self._tensors}, x)

    def backward(
        self,
        w: torch.Tensor,
        g: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        share: torch.Tensor,
        only: Part | None = None,
    ) -> torch.Tensor:
        views = {tensor.name: _view(w, tensor).detach() for tensor in self._tensors}
        trained = [tensor for tensor in self._tensors if _inside(tensor.start, only)]
        for tensor in trained:
            views[tensor.name].requires_grad_()
        scores = self._one(views, x)
        losses = functional.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none")
        # Clients have nothing in common: the slope of the sum by one's parameters is that of its part.
        found = torch.autograd.grad(losses @ share.flatten(), [views[tensor.name] for tensor in trained])
        for tensor, gradient in zip(trained, found):
            _view(g, tensor).copy_(gradient)
        return scores.detach()


def _view(stack: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """A tensor of the model for all clients, (k, ...)."""
    return stack[:, tensor.start : tensor.start + tensor.size].view(len(stack), *tensor.shape)


def _inside(start: int, only: Part | None) -> bool:
    return only is None or any(first <= start < stop for first, stop in only.ranges)
