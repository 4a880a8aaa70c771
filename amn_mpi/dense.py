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
        layers = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
        # Looked up once: a module's attributes cost as much as its small products.
        self._layers = [
            (layer.weight, layer.weight.data, layer.weight.data.t(), layer.bias.data, *_gradients(layer))
            for layer in layers
        ]

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is such a network, on the CPU."""
        return fully_connected(module) and next(module.parameters()).device.type == "cpu"

    def backward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Write the gradient of the batch's mean loss; returns the log-probabilities, (n, C).

        Layers below the lowest trained one are left out; the gradients of layers that are not
        trained are not touched.
        """
        inputs, layers = [x.view(len(y), -1)], self._layers
        for _, _, across, bias, _, _ in layers[:-1]:
            inputs.append(torch.addmm(bias, inputs[-1], across).relu_())
        _, _, across, bias, _, _ = layers[-1]
        chance = torch.log_softmax(torch.addmm(bias, inputs[-1], across), 1)
        outer = torch.zeros_like(chance).scatter_(1, y.view(-1, 1), -1.0 / len(y))
        slope = torch.ops.aten._log_softmax_backward_data(outer, chance, 1, chance.dtype)
        lowest = 0
        while not layers[lowest][0].requires_grad:
            lowest += 1
        for k in range(len(layers) - 1, lowest - 1, -1):
            parameter, weight, _, _, by_weight, by_bias = layers[k]
            if parameter.requires_grad:
                torch.mm(slope.t(), inputs[k], out=by_weight)
                torch.sum(slope, 0, out=by_bias)
            if k > lowest:
                slope = torch.ops.aten.threshold_backward(slope @ weight, inputs[k], 0)
        return chance


def fully_connected(module: nn.Module) -> bool:
    """Whether a module is a ``Sequential`` of Flatten, Linear and ReLU, ending in a Linear."""
    if type(module) is not nn.Sequential or not unaltered(module):
        return False
    kinds = [type(layer) for layer in module]
    inner = kinds[1:]
    linear = [layer for layer in module if isinstance(layer, nn.Linear)]
    return (
        len(list(module.parameters())) == 2 * len(linear)  # each with a bias, none shared
        and kinds[:1] == [nn.Flatten]
        and inner[::2] == [nn.Linear] * len(inner[::2])
        and inner[1::2] == [nn.ReLU] * len(inner[1::2])
        and len(inner) % 2 == 1
        and (module[0].start_dim, module[0].end_dim) == (1, -1)
    )


def unaltered(module: nn.Sequential) -> bool:
    """Whether it computes what its layers' types say: no layer twice, no hooks, no forward of its own."""
    layers = [module, *module]
    return len(set(map(id, layers))) == len(layers) and not any(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
        for layer in layers
    )


def _gradients(layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    if layer.weight.grad is None or layer.bias.grad is None:
        raise ValueError("bind the module first: its gradients have to be there")
    return layer.weight.grad, layer.bias.grad
