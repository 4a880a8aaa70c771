"""What the arithmetic is held against: the rate of a product of matrices, and the operations of a step."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

SIDE = 768


def sgemm(turns: int = 12) -> float:
    """GFLOP/s of one core in a product of 768x768 float32 matrices: thread CPU time, median of ``turns``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b, c, seconds = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE), torch.empty(SIDE, SIDE), []
    for _ in range(turns + 2):  # the first two warm up
        began = time.thread_time()
        torch.mm(a, b, out=c)
        seconds.append(time.thread_time() - began)
    torch.set_num_threads(threads)
    return 2.0 * SIDE**3 / statistics.median(seconds[2:]) / 1e9


def flops(module: nn.Module, shape: tuple[int, ...], batch: int) -> float:
    """Of one step: three products a layer, two in the lowest; additions and products counted."""
    total, lowest, x = 0.0, True, torch.zeros(2, *shape)  # two: one has no batch statistics
    for layer in module.children():
        x = layer(x)
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            places = x[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
            total += 2.0 * layer.weight.numel() * places * (2 if lowest else 3)
            lowest = False
    return total * batch
