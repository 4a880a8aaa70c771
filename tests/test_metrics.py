"""Figures over clients, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from amn_mpi import metrics


def test_every_client_counts_the_same() -> None:
    told = metrics.summary(np.array([1, 30]), np.array([2, 40]))  # 50 % and 75 %
    assert told["mean_accuracy"] == 62.5 and told["std"] == 12.5
    assert told["weighted_accuracy"] == pytest.approx(100 * 31 / 42, abs=1e-6)
    assert told["worst10"] == 50.0
    assert told["deciles"] == [52.5, 55, 57.5, 60, 62.5, 65, 67.5, 70, 72.5]
    assert told["jain"] == pytest.approx(125**2 / (2 * (50**2 + 75**2)), abs=1e-6)


@pytest.mark.parametrize(("clients", "worst"), [(1, 0), (10, 0), (11, 0.5), (20, 0.5), (21, 1)])
def test_worst_tenth_rounds_up(clients: int, worst: float) -> None:
    right = np.random.default_rng(0).permutation(clients)  # client with k right has k %
    assert metrics.summary(right, np.full(clients, 100))["worst10"] == worst


def test_attention_inside_groups() -> None:
    one = [[0, 0.75, 0.25], [1, 0, 0], [0.5, 0.5, 0]]
    two = [[0, 0, 1], [0, 0, 1], [0, 1, 0]]
    inside = metrics.inside_groups(np.array([one, two]), np.array([4, 4, 9]))
    assert inside == [pytest.approx(1.75 / 3, abs=1e-6), 0]


def test_clients_without_attention_do_not_count() -> None:
    rows = np.array([[[0, 1, 0], [1, 0, 0], [0, 0, 0]]])
    assert metrics.inside_groups(rows, np.array([1, 1, 1])) == [1]
    assert metrics.inside_groups(rows * 0, np.array([1, 1, 1])) == [0]


@pytest.mark.parametrize(("right", "jain"), [([5, 5, 5], 1), ([0, 9, 0], 1 / 3), ([0, 0, 0], 1)])
def test_jain_between_one_nth_and_one(right: list[int], jain: float) -> None:
    assert metrics.summary(np.array(right), np.full(3, 10))["jain"] == pytest.approx(jain, abs=1e-6)


def test_accuracy_by_size() -> None:
    """Seven clients in parts of three, two and two; of two with 20 samples the first comes first."""
    samples = np.array([50, 20, 90, 10, 20, 30, 80])
    told = metrics.by_size(np.array([1.0, 2, 4, 8, 16, 32, 64]), samples)
    assert told == [
        {"clients": 3, "train_samples": [10, 20], "mean_accuracy": pytest.approx((8 + 2 + 16) / 3)},
        {"clients": 2, "train_samples": [30, 50], "mean_accuracy": (32 + 1) / 2},
        {"clients": 2, "train_samples": [80, 90], "mean_accuracy": (64 + 4) / 2},
    ]
    (alone,) = metrics.by_size(np.array([7.0]), np.array([3]))
    assert alone == {"clients": 1, "train_samples": [3, 3], "mean_accuracy": 7}
