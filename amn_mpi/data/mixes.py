"""Which labels each client should see: the label mix before the pool's limits are applied."""

from __future__ import annotations

import numpy as np


def hidden_groups(clients: int, groups: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) group of each client: as many clients in each as possible, dealt at random."""
    return rng.permutation(np.arange(clients) % groups)


def log_dirichlet(available: np.ndarray, alpha: float, rows: int, rng: np.random.Generator) -> np.ndarray:
    """(rows, C) logarithms of label mixes from Dirichlet(alpha C q), q the pool's own mix.

    Hsu et al. 2019, arXiv:1909.06335: with equally frequent classes each concentration is
    ``alpha``; a large alpha gives the pool's mix. Drawn in logarithms, since at alpha = 0.001 all
    gamma variates underflow to 0: Gamma(a) = Gamma(a + 1) U^(1/a). -inf for absent classes.
    """
    present = available > 0
    a = alpha * present.sum() * available[present] / available.sum()
    gamma = rng.standard_gamma(a + 1, (rows, len(a)))
    draws = np.log(gamma) + np.log1p(-rng.random((rows, len(a)))) / a
    logs = np.full((rows, len(available)), -np.inf)
    logs[:, present] = draws - draws.max(axis=1, keepdims=True)
    return logs


def deal_classes(clients: int, each: int, available: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, C) bool: ``each`` different classes for every client, each class equally often (+-1).

    Shuffled copies of the class list dealt out one behind the other; a client that reaches into
    the next copy skips the classes it holds, and they stay on top. That is the same as taking, in
    random order of the ties, the classes used least so far.
    """
    classes = np.flatnonzero(available)
    used = np.zeros(len(classes))
    chosen = np.zeros((clients, len(available)), bool)
    for i, tie in enumerate(rng.random((clients, len(classes)))):
        hand = np.argsort(used + tie)[:each]
        used[hand] += 1
        chosen[i, classes[hand]] = True
    return chosen
