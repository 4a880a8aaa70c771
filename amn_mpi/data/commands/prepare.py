"""``prepare``: write the cache ahead of a job, so that the job finds it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from amn_mpi.data import own_clients, preparation
from amn_mpi.data.commands.words import config_of


def run(argv: Sequence[str]) -> None:
    """Print the cache file's path and size."""
    config = config_of("prepare", argv)
    fed = preparation.prepare(own_clients.resolved(config.data), config.seed)
    size = os.path.getsize(fed.path) / 1e6
    samples = int(fed.start[-1])
    print(f"{fed.name}: {fed.clients} clients, {samples:,} samples, {size:.1f} MB in {fed.path}")
