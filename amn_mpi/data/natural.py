"""Data whose clients are its own: which of them take part, and which samples are for their tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data.heterogeneity import Assignment
from amn_mpi.data.raw import Raw
from amn_mpi.data.split import split_tests
from amn_mpi.errors import UserError
from amn_mpi.rng import generator

if TYPE_CHECKING:
    from amn_mpi.config import Data


def applied(data: Data) -> Data:
    """The configuration without what deals out a pool."""
    return replace(data, labels="own", sizes="own", concept="none")


def sizes(raw: Raw, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Training and test samples of each of the data's clients: two (K,) int64 arrays."""
    count, owner = len(raw.client_names), np.asarray(raw.client)
    everything = np.bincount(owner, minlength=count)
    if raw.test is not None:
        test = np.bincount(owner[raw.test], minlength=count)
    else:
        most = np.minimum(np.rint(everything * data.test_fraction), everything - data.min_samples)
        test = np.maximum(1, most).astype(np.int64)
    return everything - test, test


def usable(raw: Raw, data: Data) -> np.ndarray:
    """(M,) clients with ``data.min_samples`` samples for training and one for the test.

    Raises ``UserError`` where there is none.
    """
    train, test = sizes(raw, data)
    found = np.flatnonzero((train >= data.min_samples) & (test > 0))
    if not len(found):
        raise UserError(
            f"data.name = {data.name}: none of its {len(train)} clients has {data.min_samples} training "
            f"samples (data.min_samples) and one for its test; the largest has {train.max()}"
        )
    return found


def assign(raw: Raw, data: Data, seed: int) -> Assignment:
    """Each client keeps its own samples; at most ``data.clients`` of them, chosen by the seed.

    Raises ``UserError`` where no client has enough samples.
    """
    chosen, classes = usable(raw, data), len(raw.class_names)
    if len(chosen) > data.clients:
        rng = generator(seed, "data clients")
        chosen = np.sort(rng.choice(chosen, data.clients, replace=False))
    place = np.full(len(raw.client_names), -1)
    place[chosen] = np.arange(len(chosen))
    owner = place[np.asarray(raw.client)]
    rows = generator(seed, "data samples").permutation(np.flatnonzero(owner >= 0))
    owner, labels = owner[rows], raw.y[rows]
    cells = owner * classes + labels
    counts = np.bincount(cells, minlength=len(chosen) * classes).reshape(-1, classes)
    train, test = (part[chosen] for part in sizes(raw, data))
    if raw.test is not None:
        tested = raw.test[rows]
    else:
        tested = within(cells) < split_tests(counts, test, generator(seed, "data tests")).ravel()[cells]
    tests = np.bincount(cells[tested], minlength=counts.size).reshape(counts.shape)
    none = np.zeros(len(chosen), np.int64)
    return Assignment(
        rows[np.lexsort((tested, owner))],
        np.concatenate([[0], np.cumsum(train + test)]),
        train,
        test,
        none,
        none,
        counts - tests,
    )


def within(cells: np.ndarray) -> np.ndarray:
    """(n,) how many earlier entries are of the same cell."""
    order = np.argsort(cells, kind="stable")
    ordered = cells[order]
    first = np.searchsorted(ordered, ordered)
    place = np.empty_like(order)
    place[order] = np.arange(len(cells)) - first
    return place
