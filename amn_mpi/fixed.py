"""Weighted sums of parameters in fixed point: exact, so in whatever order and on whatever rank.

A weighted parameter counts as a multiple of 2^-40, and 2^-41 is far under float32's step at 1e-3.
The weights sum to 1: with every parameter under 2^22 no sum exceeds 2^62, however many clients
there are.
"""

from __future__ import annotations

from functools import cache

import torch

from amn_mpi import native
from amn_mpi.blocks import BLOCK

UNIT = 2.0**40
BOUND = 2.0**22


def add(total: torch.Tensor, values: torch.Tensor, weight: float) -> None:
    """``total += values * weight``, bit for bit the same with and without the compiled library.

    Args:
        total: int64. values: float32 under BOUND. Contiguous and of one shape.
    """
    compiled = _functions()
    if compiled is not None:
        compiled.add_fixed(total.data_ptr(), values.data_ptr(), values.numel(), weight * UNIT)
        return
    for sums, piece in zip(total.view(-1).split(BLOCK), values.view(-1).split(BLOCK)):  # stays in the cache
        sums += (piece.double() * (weight * UNIT)).round_().long()


def mean(total: torch.Tensor, share: float) -> torch.Tensor:
    """The sum as float32, divided by ``share``, which is what its weights sum to."""
    out = torch.empty(total.shape)
    for floats, piece in zip(out.split(BLOCK, 1), total.split(BLOCK, 1)):
        floats.copy_(piece.double() / UNIT / share)
    return out


@cache
def _functions() -> native.Functions | None:
    return native.functions() if native.available() else None
