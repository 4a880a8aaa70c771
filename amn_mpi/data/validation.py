"""A federation for tuning: part of the training samples takes the place of the test samples."""

from __future__ import annotations

import dataclasses

import numpy as np

from amn_mpi.data.federation import Federation
from amn_mpi.errors import ConfigError


def hold_out(fed: Federation, fraction: float, labels: np.ndarray) -> Federation:
    """Each client's last training rows, whose order is random, become what it is tested on.

    The true test rows are not part of the result: no rank ever reads them.

    Args:
        fraction: of the training samples; at least one is held out and one stays.
        labels: of all rows of the federation, as the clients see them.

    Raises:
        ConfigError: a client has no two training samples.
    """
    if not fraction:
        return fed
    if fed.train.min() < 2:
        poor = int(fed.train.argmin())
        raise ConfigError(
            f"data.validation = {fraction}: client {poor} has {fed.train[poor]} training sample; "
            "valid is 0, or data.min_samples of at least 2"
        )
    test = np.clip(np.rint(fraction * fed.train).astype(np.int64), 1, fed.train - 1)
    train = fed.train - test
    counts = np.stack(
        [np.bincount(labels[a : a + n], minlength=fed.classes) for a, n in zip(fed.start, train)]
    )
    return dataclasses.replace(fed, train=train, test=test, train_counts=counts)
