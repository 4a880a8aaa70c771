"""The order of the tests: what needs no ranks first, then the longest files first.

Two workers take one file after another (`--dist loadfile`): a long one at the end would leave one of
them idle.
"""

from __future__ import annotations

import pytest
import ready

# Files with several ranks or long training, the longest first; the others are pure and short.
LONG = (
    "test_slurm",
    "test_memory",
    "test_resume",
    "test_every_method",
    "test_compare",
    "test_killed_rank",
    "test_survive",
    "test_docs",
    "test_fashion_mnist",
    "test_sharded",
    "test_mpi_runs",
    "test_bad_input",
    "test_torture",
    "test_end",
    "test_two_hosts",
    "test_amn",
    "test_ranks_more",
    "test_inspect",
    "test_mpi_comm",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, -1))


def pytest_sessionfinish() -> None:
    ready.end()
