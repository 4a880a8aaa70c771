"""How many numbers each layer of a network gives for one sample, found without memory and without arithmetic.

PyTorch's own way, a pass on its ``meta`` device, imports sympy and torch._dynamo at the first layer: a
second in which all ranks wait for rank 0, which asks before every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

Shape = tuple[int, ...]


def outputs(module: nn.Module, sample: Sequence[int]) -> list[int]:
    """Numbers of every layer's output, in the order of the layers; ``module`` is of no use afterwards."""
    sizes: list[int] = []

    def stand_in(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(()).expand(after(layer, tuple(x.shape)))  # one number, however large the shape
        sizes.append(y.numel())
        return y

    for layer in module.modules():
        if not list(layer.children()):
            layer.forward = partial(stand_in, layer)
    module(torch.zeros(()).expand(1, *sample))
    return sizes


def after(layer: nn.Module, shape: Shape) -> Shape:
    """Shape of what a layer without parts makes of ``shape``, samples first."""
    if isinstance(layer, nn.Linear):
        return (*shape[:-1], layer.out_features)
    if isinstance(layer, nn.Embedding):
        return (*shape, layer.embedding_dim)
    if isinstance(layer, nn.Flatten):
        return shape[0], torch.Size(shape[1:]).numel()
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return (*shape[:2], 1, 1)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.MaxPool2d)):
        channels = shape[1] if isinstance(layer, nn.MaxPool2d) else layer.out_channels
        kernel, stride, padding = map(_both, (layer.kernel_size, layer.stride, layer.padding))
        image = zip(shape[2:], kernel, stride, padding)
        return shape[0], channels, *((n + 2 * p - k) // s + 1 for n, k, s, p in image)
    return shape


def _both(size: int | str | Sequence[int]) -> Sequence[int]:
    """Of height and width."""
    if isinstance(size, str):
        raise TypeError(f"padding {size!r} is not known here")
    return (size, size) if isinstance(size, int) else size
