"""Forward and backward of fully connected networks without autograd.

A step of a small mlp is mostly dispatch: written out it takes about half of autograd's time, with the
same kernels on the same operands (``tests/test_dense.py``).
"""

from __future__ import annotations

import torch
from torch import nn


class Dense:
    """A ``Sequential`` of Flatten, Linear and ReLU, ending in a Linear, under mean cross-entropy.

    Args:
        module: its parameters and their gradients are views already (``params.bind``).
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers = [layer for layer in module.children() if isinstance(layer, nn.Linear)]

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is such a network, on the CPU."""
        kinds = [type(layer) for layer in module.children()]
        inner = kinds[1:]
        return (
            type(module) is nn.Sequential
            and kinds[:1] == [nn.Flatten]
            and inner[::2] == [nn.Linear] * len(inner[::2])
            and inner[1::2] == [nn.ReLU] * len(inner[1::2])
            and len(inner) % 2 == 1
            and next(module.parameters()).device.type == "cpu"
        )

    def backward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Write the gradient of the batch's mean loss; returns the log-probabilities, (n, C).

        Layers below the lowest trained one are left out; the gradients of layers that are not
        trained are not touched.
        """
        with torch.no_grad():
            inputs = [x.flatten(1)]
            for layer in self.layers[:-1]:
                inputs.append(torch.relu_(torch.addmm(layer.bias, inputs[-1], layer.weight.t())))
            last = self.layers[-1]
            scores = torch.addmm(last.bias, inputs[-1], last.weight.t())
            chance = torch.log_softmax(scores, 1)
            outer = torch.zeros_like(chance).scatter_(1, y[:, None], -1.0 / len(y))
            slope = torch.ops.aten._log_softmax_backward_data(outer, chance, 1, chance.dtype)
            lowest = next(k for k, layer in enumerate(self.layers) if layer.weight.requires_grad)
            for k in range(len(self.layers) - 1, lowest - 1, -1):
                layer, below = self.layers[k], inputs[k]
                if layer.weight.requires_grad:
                    torch.mm(slope.t(), below, out=layer.weight.grad)
                    torch.sum(slope, 0, out=layer.bias.grad)
                if k > lowest:
                    slope = torch.ops.aten.threshold_backward(slope @ layer.weight, below, 0)
            return chance
