"""A network of one's own: ``--model.name examples/own_model.py:build``.

A function of the shape of one sample and the number of classes; ``hidden`` is ``model.hidden``, and may
be left out. Weights come from torch's own generator, which is set from the seed.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class Residual(nn.Module):
    """x + f(x), f with one hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.tanh(self.inner(x)))


def build(shape: tuple[int, ...], classes: int, hidden: int = 64) -> nn.Module:
    entry = nn.Linear(math.prod(shape), hidden)
    return nn.Sequential(
        nn.Flatten(), entry, Residual(hidden), nn.LayerNorm(hidden), nn.Linear(hidden, classes)
    )
