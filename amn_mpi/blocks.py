"""Products of many models at once, in fixed blocks of columns.

A product takes rows x BLOCK beside its operands, however large a layer is, and rounds the same
wherever it runs.
"""

from __future__ import annotations

import torch

from amn_mpi.params import ParameterLayout

BLOCK = 65536


def mix(mixing: torch.Tensor, models: torch.Tensor, layout: ParameterLayout, out: torch.Tensor) -> None:
    """Hybrids: out[:, l] = mixing[l] @ models[:, l]; (L, n, N), (N, P) -> (n, P)."""
    for weights, group in zip(mixing, layout.groups):
        for start in range(group.start, group.stop, BLOCK):
            columns = slice(start, min(start + BLOCK, group.stop))
            out[:, columns] = weights @ models[:, columns]


def products(gradients: torch.Tensor, models: torch.Tensor, layout: ParameterLayout) -> torch.Tensor:
    """Inner products g_i^l . theta_j^l, (n, P), (N, P) -> (L, n, N)."""
    pairs = [gradients[:, g.start : g.stop] @ models[:, g.start : g.stop].T for g in layout.groups]
    return torch.stack(pairs)


def inner(rows: torch.Tensor, models: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """<row_i - reference, model_j - reference>, (n, P), (N, P), (P,) -> (n, N) float64.

    About a reference near all of them, since squared distances are differences of these numbers.
    """
    total = torch.zeros(len(rows), len(models), dtype=torch.float64)
    for start in range(0, len(reference), BLOCK):
        columns = slice(start, start + BLOCK)
        centre = reference[columns]
        total += ((rows[:, columns] - centre) @ (models[:, columns] - centre).T).double()
    return total
