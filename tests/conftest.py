"""The order of the tests: what is short first, nearly all of it without ranks, then the longest files first.

Two workers take one file after another (`--dist loadfile`): a long one at the end would leave one of
them idle.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the program's own; two workers with two threads each wait

import pytest  # noqa: E402
import ready  # noqa: E402

# Files with several ranks or long training, the longest first; the others are short.
LONG = (
    "test_slurm",
    "test_resume",
    "test_docs",
    "test_bad_input",
    "test_memory",
    "test_compare",
    "test_every_method",
    "test_survive",
    "test_end",
    "test_killed_rank",
    "test_fashion_mnist",
    "test_torture",
    "test_mpi_runs",
    "test_sharded",
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
