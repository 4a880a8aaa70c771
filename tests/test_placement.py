"""Who owns whom: contiguous, complete, and as light as contiguous blocks can be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from amn_mpi.placement import Placement, place

DRAW = np.random.default_rng(0)
CASES = [(list(map(int, DRAW.integers(1, 30, n))), owners) for n in range(1, 9) for owners in range(1, 7)]
CASES += [([1] * 7, 3), ([100, 1, 1, 1], 3), ([1, 1, 1, 100], 3), ([5, 5, 50, 5, 5], 2), ([0, 0, 3], 2)]


def loads(placement: Placement, work: list[int]) -> list[int]:
    return [sum(max(1, work[c]) for c in placement.clients(o)) for o in range(placement.owners)]


def best(work: list[int], owners: int) -> int:
    """The lightest heaviest block over all ways to cut."""
    work = [max(1, w) for w in work]
    cuts = itertools.combinations_with_replacement(range(len(work) + 1), owners - 1)
    return min(max(sum(work[a:b]) for a, b in zip((0, *c), (*c, len(work)))) for c in cuts)


@pytest.mark.parametrize(("work", "owners"), CASES)
def test_blocks_cover_all_and_are_the_best(work: list[int], owners: int) -> None:
    placed = place(work, owners)
    assert placed.owners == owners
    owned = [c for o in range(owners) for c in placed.clients(o)]
    assert owned == list(range(len(work)))
    assert max(loads(placed, work)) == best(work, owners)
    busy = [bool(placed.clients(o)) for o in range(owners)]
    assert busy == [True] * min(owners, len(work)) + [False] * (owners - len(busy[: len(work)]))


def test_many_clients_stay_within_one_client_of_the_mean() -> None:
    work = list(map(int, np.random.default_rng(1).lognormal(3, 1.0, 1000).astype(int) + 1))
    placed = place(work, 32)
    assert max(loads(placed, work)) <= sum(work) / 32 + max(work)


def test_more_owners_than_clients() -> None:
    placed = place([4, 9, 2], 6)
    assert placed.bounds == (0, 1, 2, 3, 3, 3, 3)
    assert len(placed.clients(5)) == 0 and placed.of(5, np.arange(3)).tolist() == []


def test_members_of_a_cohort() -> None:
    placed, cohort = Placement((0, 3, 4, 4, 9)), np.array([0, 2, 4, 7, 8])
    assert [placed.of(o, cohort).tolist() for o in range(4)] == [[0, 2], [], [], [4, 7, 8]]
    assert placed.counts(cohort).tolist() == [2, 0, 0, 3]
