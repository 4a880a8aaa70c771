"""How many training and test samples each client gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.errors import ConfigError
from amn_mpi.rng import generator

if TYPE_CHECKING:
    from amn_mpi.config import Data


def client_sizes(pool: int, data: Data, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test samples of each client: two (N,) int64 arrays, together <= ``pool``.

    Log-normal sizes are proportional to exp(sigma z) with the mean of the equal case, but never
    below ``data.min_samples``. Raises ``ConfigError`` when the pool is too small.
    """
    train, test = _equal(pool, data)
    _check(pool, data, train, test)
    n = data.clients
    if data.sizes == "equal":
        return np.full(n, train), np.full(n, test)
    z = data.sigma * generator(seed, "data sizes").standard_normal(n)
    trains = apportion(np.exp(z - z.max()), n * train, data.min_samples)
    if data.test_per_client:
        return trains, np.full(n, test)
    return trains, apportion(trains, n * test, 1)


def _equal(pool: int, data: Data) -> tuple[int, int]:
    """Training and test samples of each client when all are of one size."""
    if data.train_per_client:
        train = data.train_per_client
        part = data.test_fraction / (1 - data.test_fraction)
        return train, data.test_per_client or max(1, round(train * part))
    share = pool // data.clients
    if data.test_per_client:
        return share - data.test_per_client, data.test_per_client
    # The guaranteed training samples come before the fraction.
    test = max(1, min(round(share * data.test_fraction), share - data.min_samples))
    return share - test, test


def _check(pool: int, data: Data, train: int, test: int) -> None:
    n, least = data.clients, data.min_samples
    if n > pool:
        raise ConfigError(f"data.clients = {n}, but {data.name} has only {pool} samples")
    if data.train_per_client and train < least:
        raise ConfigError(
            f"data.train_per_client = {train} is less than data.min_samples = "
            f"{least}; raise the one or lower the other"
        )
    if train < least:
        raise ConfigError(
            f"data.clients = {n}: {pool} samples in {data.name} give each client {pool // n}, but "
            f"{least} for training (data.min_samples) and {test} for its test are needed; lower "
            f"data.clients, data.min_samples or data.test_per_client"
        )
    if n * (train + test) > pool:
        raise ConfigError(
            f"data.clients = {n} x ({train} training + {test} test samples) = {n * (train + test)}"
            f", but {data.name} has only {pool}; lower data.clients or data.train_per_client"
        )


def apportion(weights: np.ndarray, total: int, minimum: int) -> np.ndarray:
    """Whole numbers with sum ``total``, proportional to ``weights`` but at least ``minimum``.

    Needs ``total >= len(weights) * minimum``. The shares are max(minimum, k w) with the one k
    that gives the sum, found among the sorted weights; then the largest remainders are rounded up.
    """
    n = len(weights)
    ordered = np.sort(weights)
    above = np.cumsum(ordered[::-1])[::-1]
    # k if the m smallest sit at the minimum; the right m is the first for which the next does not.
    k = (total - np.arange(n) * minimum) / above
    fits = k * ordered >= minimum
    fits[-1] = True
    shares = np.maximum(k[fits.argmax()] * weights, minimum)
    whole = np.floor(shares + 1e-9).astype(np.int64)
    up = np.argsort(whole - shares, kind="stable")[: max(0, total - whole.sum())]
    whole[up] += 1
    return whole
