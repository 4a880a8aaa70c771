"""An order of the clients in which those who listen to each other lie side by side."""

from __future__ import annotations

import numpy as np


def by_clusters(attention: np.ndarray) -> np.ndarray:
    """Leaves of an average-linkage tree (UPGMA) over the layers' mean attention.

    At each join the two branches are turned so that the clients that meet are the most alike.

    Args:
        attention: (L, N, N), who listens to whom.

    Returns:
        A permutation of the clients, (N,).
    """
    mean = attention.astype(np.float64).mean(0)
    alike = (mean + mean.T) / 2
    pairs = alike.copy()
    np.fill_diagonal(pairs, -np.inf)
    leaves = [[client] for client in range(len(pairs))]
    best = pairs.argmax(1)
    value = pairs.max(1)
    for _ in range(len(pairs) - 1):
        i = int(value.argmax())
        j = int(best[i])
        _join(pairs, i, j, len(leaves[i]), len(leaves[j]))
        leaves[i], leaves[j] = _turned(leaves[i], leaves[j], alike), []
        stale = np.flatnonzero((best == i) | (best == j) | (pairs[:, i] > value))
        for row in {i, j, *stale.tolist()}:
            best[row], value[row] = pairs[row].argmax(), pairs[row].max()
    return np.array(next(order for order in leaves if order), int)


def _join(pairs: np.ndarray, i: int, j: int, ni: int, nj: int) -> None:
    """Cluster i becomes both; j is out."""
    mean = (ni * pairs[i] + nj * pairs[j]) / (ni + nj)
    pairs[i], pairs[:, i] = mean, mean
    pairs[j], pairs[:, j] = -np.inf, -np.inf
    pairs[i, i] = -np.inf


def _turned(one: list[int], other: list[int], alike: np.ndarray) -> list[int]:
    ways = [(a, b) for a in (one, one[::-1]) for b in (other, other[::-1])]
    first, second = max(ways, key=lambda way: float(alike[way[0][-1], way[1][0]]))
    return first + second
