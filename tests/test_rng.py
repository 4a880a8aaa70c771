"""Randomness: a function of (seed, purpose, round, client), and cohorts of the right size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from amn_mpi import rng

HERE = (7, "shuffle", 3, 5)
ELSEWHERE = [
    (8, "shuffle", 3, 5),
    (7, "order", 3, 5),
    (7, "shuffle", 4, 5),
    (7, "shuffle", 3, 6),
    (7, "shuffle", 5, 3),
]


def draws(*where: object) -> np.ndarray:
    return rng.generator(*where).integers(2**62, size=50)


def test_a_generator_depends_on_its_four_numbers_alone() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    first = draws(*HERE)
    np.random.seed(2)
    torch.manual_seed(2)
    np.random.random(9)
    assert np.array_equal(draws(*HERE), first)


def test_streams_differ_in_every_argument() -> None:
    streams = [draws(*where) for where in (HERE, *ELSEWHERE)]
    for a, b in itertools.combinations(streams, 2):
        assert not np.isin(a, b).any()


def test_streams_of_neighbours_are_not_related() -> None:
    rows = np.array(
        [rng.generator(0, "shuffle", t, i).normal(size=400) for t in range(1, 6) for i in range(6)]
    )
    related = np.corrcoef(rows) - np.eye(len(rows))
    assert abs(related).max() < 5 / np.sqrt(400)  # 435 pairs, each with a spread of 1/20


def test_known_values() -> None:
    # A change here changes every result: runs before and after it can no longer be compared.
    assert rng.generator(0, "shuffle", 1, 2).permutation(8).tolist() == [6, 5, 4, 1, 0, 2, 3, 7]
    assert rng.torch_seed(0, "model") == 6959203041702401008
    assert rng.cohort(0, 1, 10, 0.5).tolist() == [0, 2, 5, 8, 9]


def test_the_largest_seed() -> None:
    assert not np.array_equal(draws(2**63 - 1, "x"), draws(2**63 - 2, "x"))
    assert 0 <= rng.torch_seed(2**63 - 1, "x") < 2**63 - 1


@pytest.mark.parametrize(
    ("clients", "fraction", "size"),
    [
        (10, 0.5, 5),
        (5, 0.5, 3),
        (32, 0.1, 3),
        (3, 0.01, 1),
        (1, 0.5, 1),
        (7, 0.99, 7),
        (4, 0.25, 1),
        (5, 0.6, 3),
        (6, 1.0, 6),
    ],
)
def test_cohort_sizes(clients: int, fraction: float, size: int) -> None:
    for t in range(1, 6):
        cohort = rng.cohort(1, t, clients, fraction)
        assert len(cohort) == size and np.array_equal(cohort, np.unique(cohort))
        assert cohort.min() >= 0 and cohort.max() < clients


def test_cohorts_change_and_serve_every_client_alike() -> None:
    cohorts = [rng.cohort(4, t, 10, 0.3) for t in range(1, 2001)]
    counts = np.bincount(np.concatenate(cohorts), minlength=10)
    spread = np.sqrt(2000 * 0.3 * 0.7)
    assert abs(counts - 600).max() < 5 * spread
    assert len({tuple(c) for c in cohorts}) == 120  # all choices of 3 out of 10
