"""Sums in fixed point: exact, and the same from the compiled library as without it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from amn_mpi import fixed, native

SETS = [*native.runnable(), "torch"]


@pytest.fixture(params=SETS)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who adds."""
    name = str(request.param)
    made = None if name == "torch" else native.functions(name)
    monkeypatch.setattr(fixed, "_functions", lambda: made)
    return name


def halves_to_even(number: Fraction) -> int:
    return round(number)  # of a Fraction: exact, and as IEEE 754 rounds


@pytest.mark.parametrize("count", [1, 7, 8, 100, 9001])
def test_every_term_is_rounded_exactly(by: str, count: int) -> None:
    draw = np.random.default_rng(count)
    values = (draw.standard_normal(count) * 10.0 ** draw.integers(-15, 6, count)).astype(np.float32)
    weight = 1 / 3
    start = draw.integers(-(2**61), 2**61, count)
    total = torch.from_numpy(start.copy())
    fixed.add(total, torch.from_numpy(values), weight)
    scale = weight * fixed.UNIT
    expected = [
        int(s) + halves_to_even(Fraction(float(np.float64(v) * scale))) for s, v in zip(start, values)
    ]
    assert total.tolist() == expected


def test_halves_go_to_the_even_number(by: str) -> None:
    halves = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.5, 1e-9, -7.5, 1048575.5]
    total = torch.zeros(len(halves), dtype=torch.int64)
    fixed.add(total, torch.tensor(halves), 1 / fixed.UNIT)
    assert total.tolist() == [0, 2, 2, 0, -2, -2, 4, 0, -8, 1048576]


def test_many_clients_at_the_bound_do_not_overflow(by: str) -> None:
    total = torch.zeros(3, dtype=torch.int64)
    for _ in range(1000):
        fixed.add(total, torch.tensor([fixed.BOUND, -fixed.BOUND, 1.0]), 1 / 1000)
    found = fixed.mean(total[None], 1.0)[0]
    assert found.tolist() == [fixed.BOUND, -fixed.BOUND, 1.0]


def test_the_mean_of_those_who_are_left() -> None:
    total = torch.zeros(2, 20001, dtype=torch.int64)
    values = torch.randn(2, 20001, generator=torch.Generator().manual_seed(0))
    for weight in (0.25, 0.5):
        fixed.add(total, values, weight)
    np.testing.assert_allclose(fixed.mean(total, 0.75), values, atol=1e-11, rtol=1e-6)
