"""Divide each client's samples, class by class, into a training and a test part."""

from __future__ import annotations

import numpy as np

from amn_mpi.data.fit import pick


def split_tests(counts: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, C) test samples of each class: rows sum to ``test``, in the proportions of ``counts``.

    Every quota is its exact share rounded down or up. Rounded up are first classes that keep a
    sample in the training part (a test of a class never trained on says little), then others.
    """
    ideal = counts * (test / counts.sum(axis=1))[:, None]
    quota = np.floor(ideal + 1e-9).astype(np.int64)
    part = np.where(ideal - quota > 1e-9, ideal - quota, 0.0)
    for can in (quota + 1 < counts, quota + 1 == counts):
        missing = test - quota.sum(axis=1)
        quota += pick(np.where(can & (ideal > quota), part, 0.0), missing, rng)
    return quota
