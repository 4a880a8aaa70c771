"""One rank's exchange: exact sums, order, buffers, and refusals that name the client."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import plain
import pytest
import torch

from amn_mpi.errors import Misdeclared
from amn_mpi.exchange import CUT, Exchange
from amn_mpi.methods.base import Update, Wire
from amn_mpi.params import Part
from amn_mpi.placement import place

SAMPLES = np.array([13, 7, 29, 11, 40])
SIZE = 6


def exchange(wire: Wire, cohort_size: int = 5, samples: np.ndarray = SAMPLES, **given) -> Exchange:
    placement = place([1] * len(samples), 1)
    usual = {"features": 0, "returned": lambda round: wire.returned}
    made = SimpleNamespace(wire=wire, part=Part(((2, 2 + SIZE),)), **{**usual, **given})
    return Exchange(plain.communicator(), placement, made, samples, cohort_size)


def mean(vectors: np.ndarray, cohort: np.ndarray, order: list[int], samples=SAMPLES) -> torch.Tensor:
    """The weighted mean of (cohort, 1, P), taken in an order of one's own."""
    made = exchange(Wire("none", "mean"), len(cohort), samples)
    for k in order:
        made.slot(k).copy_(torch.from_numpy(vectors[k]))
        made.take(int(cohort[k]), k, cohort, Update())
    return made.bring_up(cohort, [Update()] * len(cohort)).mean


def exact(vectors: np.ndarray, cohort: np.ndarray) -> list[Fraction]:
    total = sum(int(n) for n in SAMPLES[cohort])
    rows = [[Fraction(float(v)) * int(SAMPLES[c]) / total for v in row[0]] for c, row in zip(cohort, vectors)]
    return [sum(column) for column in zip(*rows)]


@pytest.mark.parametrize("members", [[0, 1, 2, 3, 4], [1, 4], [2]])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 3000.0])
def test_weighted_mean_is_the_rational_one(members: list[int], scale: float) -> None:
    cohort = np.array(members)
    vectors = np.random.default_rng(3).normal(scale=scale, size=(len(members), 1, SIZE)).astype(np.float32)
    got = mean(vectors, cohort, list(range(len(members))))[0]
    for value, right in zip(got.tolist(), exact(vectors, cohort)):
        fixed = len(members) * 2.0**-41 + 1e-15 * scale
        assert abs(Fraction(value) - right) <= fixed + 2.0**-24 * abs(float(right)) * 1.001


def test_what_cancels_in_floats_does_not_here() -> None:
    # equal weights; in float32 from left to right 3e5 + 1e-3 - 3e5 - ... is not 1e-3
    samples, cohort = np.full(4, 8), np.arange(4)
    rows = np.array([3e5, 1e-3, -3e5, 1e-3], np.float32)
    vectors = np.repeat(rows, SIZE).reshape(4, 1, SIZE)
    got = mean(vectors, cohort, [0, 1, 2, 3], samples)[0]
    np.testing.assert_allclose(got, 0.5 * np.float32(1e-3), rtol=1e-8 + 2**-24)


def test_the_order_of_clients_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    vectors = (draw.normal(size=(5, 1, SIZE)) * 10.0 ** draw.integers(-6, 5, (5, 1, SIZE))).astype(np.float32)
    means = [mean(vectors, np.arange(5), list(draw.permutation(5))) for _ in range(12)]
    assert all(torch.equal(m, means[0]) for m in means)


def test_a_second_round_starts_at_zero() -> None:
    made, cohort = exchange(Wire("none", "mean"), 1), np.array([3])
    for value in (5.0, -2.0):
        made.slot(0).fill_(value)
        made.take(3, 0, cohort, Update())
        assert made.bring_up(cohort, [Update()]).mean.tolist() == [[value] * SIZE]


def told(made: Exchange, client: int, update: Update = Update()) -> str:  # noqa: B008
    """What rank 0 hears of this client after its turn, with all others well; "" if nothing."""
    cohort = np.arange(5)
    updates = [Update(seconds=0.5)] * 5
    updates[client] = Update(trouble=made.take(client, client, cohort, update))
    arrived = made.bring_up(cohort, updates)
    assert arrived is not None
    assert arrived.cohort.tolist() == [c for c in cohort if c not in arrived.dropped]
    assert set(arrived.dropped) <= {client} and not (arrived.trouble or arrived.cut)
    return arrived.dropped.get(client, "")


@pytest.mark.parametrize("up", ["mean", "rows"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_client_that_diverged_is_named(up: str, bad: float) -> None:
    made = exchange(Wire("none", up))  # type: ignore[arg-type]
    made.slot(2)[0, 4] = bad
    assert re.search("NaN or Inf.*local.lr", told(made, 2))


def test_a_state_that_diverged_is_seen() -> None:
    made = exchange(Wire("none", "none", received=0, returned=0))
    assert "NaN or Inf" in told(made, 1, Update(state={"model": torch.tensor([0.0, np.nan])}))
    assert told(made, 1, Update(state={"model": torch.tensor([0.0, 1.0])})) == ""


@pytest.mark.parametrize("up", ["mean", "rows"])
def test_what_exceeds_the_fixed_point_is_refused(up: str) -> None:
    made = exchange(Wire("none", up))  # type: ignore[arg-type]
    made.slot(4)[0, 1] = -1e9
    assert re.search("parameter exceeds", told(made, 4))


@pytest.mark.parametrize("weights", ["samples", "equal"])
@pytest.mark.parametrize("up", ["mean", "rows"])
def test_the_others_go_on_without_a_client_that_diverged(up: str, weights: str) -> None:
    samples, cohort = np.array([10, 20, 30, 40, 50]), np.array([0, 2, 3])
    vectors = np.random.default_rng(1).normal(size=(3, SIZE)).astype(np.float32)
    vectors[1, 3] = np.nan
    made = exchange(Wire("none", up, weights=weights, figures=("a",)), 5, samples)  # type: ignore[arg-type]
    updates = []
    for k, client in enumerate(cohort):
        made.slot(k)[0] = torch.from_numpy(vectors[k])
        code = made.take(int(client), k, cohort, Update({"a": float(k)}))
        updates.append(Update({"a": float(k)}, seconds=0.25, trouble=code))
    arrived = made.bring_up(cohort, updates)
    assert arrived is not None and not arrived.trouble
    assert arrived.cohort.tolist() == [0, 3] and list(arrived.dropped) == [2]
    assert arrived.figures["a"].tolist() == [0, 2] and len(arrived.seconds) == 2
    if up == "rows":
        assert np.array_equal(arrived.rows[:, 0], vectors[[0, 2]])
    else:
        share = np.array([0.2, 0.8]) if weights == "samples" else np.array([0.5, 0.5])
        np.testing.assert_allclose(arrived.mean[0], share @ vectors[[0, 2]], rtol=1e-6, atol=1e-9)


def test_all_diverged_is_the_end() -> None:
    made, cohort = exchange(Wire("none", "mean")), np.array([1, 4])
    made.slot(0).fill_(np.nan)
    updates = [Update(trouble=made.take(c, 0, cohort, Update())) for c in (1, 4)]
    arrived = made.bring_up(cohort, updates)
    assert arrived is not None and re.match("every client .* diverged, client 1 first", arrived.trouble)


def test_what_a_stop_cuts_off_is_no_divergence() -> None:
    made, cohort = exchange(Wire("none", "mean")), np.array([1, 4])
    arrived = made.bring_up(cohort, [Update(seconds=0.1), Update(trouble=CUT)])
    assert arrived is not None and arrived.cut and not arrived.dropped and not arrived.trouble


@pytest.mark.parametrize("value", [1e6, 4e6, 1.9e7, 1e8])
def test_no_sum_runs_over(value: float) -> None:
    # ten clients at the same large value: their mean is that value, or it is refused
    samples, cohort = np.full(10, 3), np.arange(10)
    made = exchange(Wire("none", "mean"), 10, samples)
    made.slot(0).fill_(value)
    updates = [Update(trouble=made.take(c, c, cohort, Update())) for c in range(10)]
    arrived = made.bring_up(cohort, updates)
    assert arrived is not None
    if arrived.trouble:
        assert value > 4e6
    else:
        np.testing.assert_allclose(arrived.mean, value, rtol=1e-6)


def test_rows_come_up_in_cohort_order_with_figures() -> None:
    wire = Wire("none", "rows", returned=2, figures=("a", "b"), kinds=("x", "y"))
    made, cohort = exchange(wire, 3), np.array([0, 2, 4])
    for k, client in enumerate(cohort):
        made.slot(k).copy_(torch.tensor([[10.0], [20.0]]) + client)
        made.take(int(client), k, cohort, Update())
    updates = [Update({"b": -float(c), "a": float(c)}) for c in cohort]
    arrived = made.bring_up(cohort, updates)
    assert arrived.rows[:, :, 0].tolist() == [[10, 20], [12, 22], [14, 24]]
    assert arrived.figures["a"].tolist() == [0, 2, 4] and arrived.figures["b"].tolist() == [0, -2, -4]


def test_rounds_in_which_fewer_vectors_come_up() -> None:
    """Two, one, two again, in rounds 1 to 3: as many lie behind one another, and count as sent by kind."""
    wire = Wire("none", "rows", returned=2, kinds=("x", "y"))
    made, cohort = exchange(wire, 3, returned=lambda round: 1 + (round < 3)), np.array([0, 2, 4])
    made.left._counts = True
    for round, many in ((1, 2), (3, 1), (2, 2)):
        made.down(round, cohort, {})
        for k, client in enumerate(cohort):
            assert made.slot(k).shape == (many, SIZE) and made.slot(k).is_contiguous()
            made.slot(k).copy_(torch.tensor([[10.0], [20.0]])[:many] + client + 100 * round)
            made.take(int(client), k, cohort, Update())
        left = made.left.bytes.copy()
        arrived = made.bring_up(cohort, [Update()] * 3)
        expected = [[start + client + 100 * round for start in (10, 20)[:many]] for client in cohort]
        assert arrived is not None and arrived.rows.shape == (3, many, SIZE)
        assert arrived.rows[:, :, 0].tolist() == expected and arrived.rows[:, :, -1].tolist() == expected
        sent = made.left.bytes - left
        assert (sent["x"], sent["y"]) == (3 * 4 * SIZE, 3 * 4 * SIZE * (many - 1))


@pytest.mark.parametrize("up, returned, given", [("rows", 2, 3), ("rows", 2, 0), ("mean", 2, 1)])
def test_more_vectors_than_declared_are_refused(up: str, returned: int, given: int) -> None:
    wire = Wire("none", up, returned=returned, kinds=("x", "y"))  # type: ignore[arg-type]
    made = exchange(wire, returned=lambda round: given)
    with pytest.raises(Misdeclared, match=rf"returned gave {given}; valid is 2 \(wire.returned\)"):
        made.down(1, np.arange(5), {})


@pytest.mark.parametrize("figures", [(), ("a",)])
def test_features_come_in_cohort_order_without_the_dropped(figures: tuple[str, ...]) -> None:
    """Of any shape; three of them, so that the next client's numbers do not start at a multiple of 8."""
    made = exchange(Wire("none", "rows", figures=figures), 4, features=3)
    cohort, updates = np.array([0, 1, 2, 4]), []
    for k, client in enumerate(cohort):
        made.slot(k).fill_(1)
        features = torch.tensor([[0.5, 1 / 3, -2.0]]) + float(client)
        features[0, 1] *= torch.nan if client == 1 else 1
        update = Update(dict.fromkeys(figures, 0.1), features=features, seconds=0.25)
        updates.append(replace(update, trouble=made.take(int(client), k, cohort, update)))
    arrived = made.bring_up(cohort, updates)
    assert arrived is not None and list(arrived.dropped) == [1] and "NaN or Inf" in arrived.dropped[1]
    expected = torch.cat([updates[k].features for k in (0, 2, 3)])  # type: ignore[misc]
    assert torch.equal(arrived.features, expected) and arrived.features.dtype == torch.float32
    assert all((values == 0.1).all() for values in arrived.figures.values())


def test_a_turn_that_was_cut_off_gives_zeros() -> None:
    made, cohort = exchange(Wire("none", "none", received=0, returned=0), features=2), np.array([1, 4])
    arrived = made.bring_up(cohort, [Update(features=torch.ones(2)), Update(trouble=CUT)])
    assert arrived is not None and arrived.cut and arrived.features.tolist() == [[1, 1]]


def test_a_broadcast_is_made_once_a_round() -> None:
    calls: list[int] = []

    def personalise(server: dict, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        calls.append(round)
        out[0] = server["models"]

    made = exchange(Wire("broadcast", "mean", received=2), personalise=personalise)
    server = {"models": torch.arange(2 * SIZE).view(2, SIZE).float()}
    assert torch.equal(made.down(1, np.arange(5), server)[0], server["models"])
    server["models"] = server["models"] * 3
    assert torch.equal(made.renew(2, np.arange(5), server)[0], server["models"])
    assert torch.equal(made.down(2, np.array([1]), server)[0], server["models"])
    assert calls == [1, 2]


def rows_of_numbers(calls: list) -> dict:
    def personalise(server: dict, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        calls.append((round, len(cohort)))
        assert out.shape == (len(cohort), 1, SIZE)
        out.copy_((100 * round + torch.from_numpy(cohort))[:, None, None].float().expand_as(out))

    return {"personalise": personalise}


def test_rows_go_down_to_the_cohort() -> None:
    made = exchange(Wire("rows", "rows"), 2, **rows_of_numbers([]))
    assert made.down(1, np.array([1, 3]), {})[:, 0].tolist() == [[101.0] * SIZE, [103.0] * SIZE]
    assert len(made.renew(2, np.arange(5), {})) == 0
    assert made.down(2, np.array([0, 4]), {})[:, 0].tolist() == [[200.0] * SIZE, [204.0] * SIZE]


def test_renewed_rows_go_to_everybody_and_are_what_a_full_cohort_starts_from() -> None:
    calls: list = []
    made = exchange(Wire("rows", "rows", renewed=True), 2, **rows_of_numbers(calls))
    assert made.down(1, np.array([1, 3]), {})[:, 0, 0].tolist() == [101, 103]
    assert made.renew(2, np.arange(5), {})[:, 0, 0].tolist() == [200, 201, 202, 203, 204]
    assert made.down(2, np.array([0, 4]), {})[:, 0, 0].tolist() == [200, 204]
    assert calls == [(1, 2), (2, 5), (2, 2)]
    calls.clear()
    made = exchange(Wire("rows", "rows", renewed=True), 5, **rows_of_numbers(calls))
    for t in (1, 2, 3):
        assert made.down(t, np.arange(5), {})[4, 0, 0] == 100 * t + 4
        assert made.renew(t + 1, np.arange(5), {})[4, 0, 0] == 100 * t + 104
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5)]


def test_all_clients_count_alike_where_the_wire_says_so() -> None:
    made, cohort = exchange(Wire("none", "mean", weights="equal"), 3), np.array([0, 2, 4])
    for k, (client, value) in enumerate(zip(cohort, (1.0, 2.0, 6.0))):
        made.slot(k).fill_(value)
        made.take(int(client), k, cohort, Update())
    np.testing.assert_allclose(made.bring_up(cohort, [Update()] * 3).mean, 3.0, rtol=1e-7)


def test_only_the_shared_part_travels() -> None:
    made = exchange(Wire("broadcast", "mean"))
    sizes = [buffer.shape[-1] for buffer in (made.up, made.slot(0), made._down, made._sum)]
    assert sizes == [SIZE] * 4
