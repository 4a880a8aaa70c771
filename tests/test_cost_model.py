"""The cost model of ``benchmarks/cost_model.py``: its terms by hand, and what its fit finds again."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from running import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from cost_terms import Setup, extrapolation, fit, terms  # noqa: E402


def test_terms_by_hand() -> None:
    """Two workers; one number a turn (seconds) travels as 8 bytes.

    Sketches of two layers travel as 512 floats each.
    """
    clients, size = 32, 50_890
    amn = terms(Setup("amn", clients, 64, 3), cores=2)
    moved = 3 * clients * size * 4 + clients * (8 + 2 * 512 * 4)
    pairs = clients**2 * (4 * size + 6144)
    assert amn == pytest.approx(
        [16, 16 * size / 1e6, 0, 0, 16 * size / 1e6, moved / 1e9, 8, 4, pairs / 1e9, 1]
    )
    fedavg = terms(Setup("fedavg", clients, 64, 33), cores=2)
    moved = 32 * 12 * size + clients * 8
    own = [16, 16 * size / 1e6, 16 * size / 1e6]
    assert fedavg == pytest.approx([0, 0, *own, moved / 1e9, 128, 0, 0, 1])
    alone = terms(Setup("fedavg", clients, 64, 2), cores=2)
    assert alone[:5] == pytest.approx([0, 0, 32, 32 * size / 1e6, 0]), "one worker has the memory to itself"


def test_the_fit_finds_what_made_the_times() -> None:
    names, sizes, ranks = ("amn", "fedavg"), ((32, 64), (128, 64), (32, 256)), (2, 3, 9, 33)
    rows = np.array([terms(Setup(m, n, h, r), 2) for m in names for n, h in sizes for r in ranks])
    true = np.array([4e-4, 3e-3, 2e-4, 6e-3, 1e-3, 0.5, 4e-4, 3e-4, 0.01, 0.002])
    assert fit(rows, rows @ true) == pytest.approx(true, rel=1e-6)
    true[-1] = -0.001
    assert (fit(rows, rows @ true) >= 0).all(), "no cost is negative"


def test_more_ranks_take_from_rank_0_what_the_sharded_server_gives_them() -> None:
    far = extrapolation(np.full(10, 0.01))
    whole, shared = [
        [row for row in far if (row["method"], row["server"]) == ("amn", server)]
        for server in ("rank0", "sharded")
    ]
    assert len(whole) == 4
    for one, other in zip(whole, shared, strict=True):
        assert other["server step"] < one["server step"]
        assert other["rank 0, GB of memory"] < one["rank 0, GB of memory"]
