"""Fit what clients want to what the pool holds: whole numbers, exact sizes, no class overdrawn."""

from __future__ import annotations

import numpy as np

ITERATIONS = 500
# Preferences below e^-30 matter only as an order of second choices.
FAINT = 30.0


def fit(log_mix: np.ndarray, sizes: np.ndarray, available: np.ndarray) -> np.ndarray:
    """(N, C) real demand, close to ``sizes * mix``: rows sum to ``sizes``, columns <= available.

    The closest such demand in relative entropy is u_i mix_ic v_c with v_c <= 1; proportional
    scaling finds it (Sinkhorn with capped columns). What has not converged is filled from the
    classes with samples to spare. Needs ``sizes.sum() <= available.sum()``.
    """
    mix = np.exp(_soften(log_mix))
    v = np.ones(len(available))
    u = _rows(mix, v, sizes)
    for _ in range(ITERATIONS):
        taken = np.einsum("ic,i->c", mix, u)
        last, v = v, np.minimum(1.0, available / np.maximum(taken, 1e-300))
        u = _rows(mix, v, sizes)
        if np.allclose(v, last, rtol=1e-9, atol=0):
            break
    return _fill_up(u[:, None] * mix * v, sizes, available)


def _rows(mix: np.ndarray, v: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) factors that give every row its sum (einsum: the same for any number of threads)."""
    return sizes / np.einsum("ic,c->i", mix, v)


def _soften(log_mix: np.ndarray) -> np.ndarray:
    """Pull hopelessly small preferences up to about e^-40, in their order.

    With alpha = 0.001 a client's second choice may weigh e^-1000; scaling must still reach it
    when its first choice runs out.
    """
    faint = log_mix < -FAINT
    # Absent classes stay at -inf: there is nothing of them to reach.
    depth = np.where(faint, -FAINT - log_mix, 0.0)
    return np.where(faint & np.isfinite(log_mix), -FAINT - np.log1p(depth), log_mix)


def _fill_up(demand: np.ndarray, sizes: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Cut columns to their cap, then give each short row its share of what is left over."""
    columns = demand.sum(axis=0)
    demand = demand * np.minimum(1.0, available / np.maximum(columns, 1e-300))
    short = np.maximum(sizes - demand.sum(axis=1), 0.0)
    spare = np.maximum(available - demand.sum(axis=0), 0.0)
    return demand + short[:, None] * (spare / max(spare.sum(), 1e-300))


def round_within(
    demand: np.ndarray, sizes: np.ndarray, available: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(N, C) int64: every entry rounded up or down, rows sum to ``sizes``, columns <= available.

    Such a rounding always exists when ``demand`` itself keeps the limits (integral flows).
    """
    whole = np.floor(demand).astype(np.int64)
    part = demand - whole
    up = pick(part, sizes - whole.sum(axis=1), rng)
    _relieve(up, part > 0, part, available - whole.sum(axis=0))
    return whole + up


def pick(part: np.ndarray, missing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, C) bool: ``missing[i]`` entries of row i, each with a chance close to its ``part``.

    Pareto sampling (Rosen 1997, J. Statist. Plann. Inference 62). The largest remainders
    themselves would always win: clients with like mixes would all drop the same rare classes.
    """
    u = rng.random(part.shape)
    p = np.clip(part, 1e-12, 1 - 1e-12)
    odds = np.where(part > 0, (u * (1 - p)) / (p * (1 - u)), np.inf)
    rank = np.argsort(np.argsort(odds, axis=1, kind="stable"), axis=1)
    return (rank < missing[:, None]) & (part > 0)


def _relieve(up: np.ndarray, may: np.ndarray, part: np.ndarray, room: np.ndarray) -> None:
    """Move units between columns, within rows, until no column has more than ``room``.

    Each step takes the shortest chain of classes from a full one to one with space, and moves as
    many units as it carries; every step lowers the excess.
    """
    while True:
        over = up.sum(axis=0) - room
        full = np.flatnonzero(over > 0)
        if not len(full):
            return
        movable = up.T.astype(np.float32) @ (may & ~up).astype(np.float32)
        path = _chain(movable > 0, int(full[0]), over < 0)
        if not path:
            raise ArithmeticError(
                f"no rounding within the limits: class {full[0]} is over by {over[full[0]]}"
            )
        units = min(over[path[0]], -over[path[-1]], *(int(movable[a, b]) for a, b in zip(path, path[1:])))
        for a, b in zip(path, path[1:]):
            rows = np.flatnonzero(up[:, a] & may[:, b] & ~up[:, b])
            rows = rows[np.argsort(part[rows, a] - part[rows, b], kind="stable")][:units]
            up[rows, a], up[rows, b] = False, True


def _chain(edge: np.ndarray, start: int, ends: np.ndarray) -> list[int]:
    """Shortest path from ``start`` to any class in ``ends`` (breadth first); empty if none."""
    before = {start: start}
    queue = [start]
    for here in queue:
        if ends[here]:
            break
        for there in np.flatnonzero(edge[here]).tolist():
            if there not in before:
                before[there] = here
                queue.append(there)
    else:
        return []
    path = [here]
    while path[-1] != start:
        path.append(before[path[-1]])
    return path[::-1]
