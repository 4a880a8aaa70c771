"""Figures over clients: every client counts the same, whatever its size, unless said otherwise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def accuracies(correct: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Percent right per client, from counts (N,) and numbers of test samples (N,)."""
    return 100.0 * correct / tested


def summary(correct: np.ndarray, tested: np.ndarray) -> dict[str, Any]:
    """What a set of per-client accuracies amounts to, in percent.

    ``worst10`` is the mean of the lowest ceil(N / 10) clients; ``weighted_accuracy`` counts
    clients by their test samples; ``deciles`` are the 10th to 90th percentiles. ``jain`` is Jain's
    index of fairness (Jain, Chiu, Hawe, DEC-TR-301, 1984), from 1 / N where one client has all to 1
    where all have the same.
    """
    percent = accuracies(correct, tested)
    worst = np.sort(percent)[: math.ceil(len(percent) / 10)]
    return {
        "mean_accuracy": _round(percent.mean()),
        "weighted_accuracy": _round(100.0 * correct.sum() / tested.sum()),
        "std": _round(percent.std()),
        "worst10": _round(worst.mean()),
        "deciles": [_round(v) for v in np.percentile(percent, np.arange(10, 100, 10))],
        "jain": _round(percent.sum() ** 2 / (len(percent) * (percent**2).sum())) if percent.any() else 1.0,
    }


def by_size(percent: np.ndarray, samples: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy of the third of the clients with the fewest training samples, the next third, and the last.

    Clients of the same size are taken in the order of their numbers.

    Args:
        percent, samples: accuracy and training samples of each client, (N,).

    Returns:
        For each part that has clients: ``clients``, ``train_samples`` from and to, ``mean_accuracy``.
    """
    parts = np.array_split(np.argsort(samples, kind="stable"), 3)
    return [
        {
            "clients": len(part),
            "train_samples": [int(samples[part[0]]), int(samples[part[-1]])],
            "mean_accuracy": _round(percent[part].mean()),
        }
        for part in parts
        if len(part)
    ]


def effective_neighbours(attention: np.ndarray) -> list[float]:
    """1 / sum_j a_ij^2 per layer, the mean over clients that listen to anybody.

    Args:
        attention: (L, N, N), rows sum to 1 or are 0.
    """
    squares = (attention**2).sum(2)
    listening = squares[0] > 0
    if not listening.any():
        return [0.0] * len(squares)
    return [_round(v) for v in (1 / squares[:, listening]).mean(1)]


def inside_groups(attention: np.ndarray, groups: np.ndarray) -> list[float]:
    """Share of the attention that stays inside the hidden groups, per layer.

    Args:
        attention: (L, N, N), rows sum to 1 or are 0. groups: (N,), used only to report.
    """
    same = groups[:, None] == groups[None, :]
    rows = max(1.0, float((attention[0].sum(1) > 0).sum()))
    return [_round((layer * same).sum() / rows) for layer in attention]


def _round(value: float) -> float:
    return round(float(value), 6)
