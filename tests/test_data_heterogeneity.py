"""Who gets which samples: exact counts, no sample twice, label mixes as asked."""

from __future__ import annotations

import numpy as np
import pytest

from amn_mpi.config import Data
from amn_mpi.data.fit import fit, round_within
from amn_mpi.data.heterogeneity import Assignment, assign

EVEN = np.repeat(np.arange(10), 700)
# Class c has 100 (c + 1) samples: 5,500 in all.
UNEVEN = np.repeat(np.arange(10), 100 * np.arange(1, 11))
KINDS = ("iid", "dirichlet", "classes", "groups")


def data(**keys: object) -> Data:
    return Data(**{"name": "toy", "clients": 20, "concept": "none", **keys})


def parts(found: Assignment) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test indices of each client, from the arrays as documented."""
    out = []
    for i, n in enumerate(found.train):
        rows = found.order[found.start[i] : found.start[i + 1]]
        out.append((rows[:n], rows[n:]))
    return out


def counted(labels: np.ndarray, found: Assignment) -> np.ndarray:
    """(N, C) labels of all samples of each client."""
    return np.array([np.bincount(labels[np.concatenate(p)], minlength=10) for p in parts(found)])


def check(labels: np.ndarray, settings: Data, found: Assignment) -> None:
    """What holds for every assignment."""
    assert found.order.min() >= 0 and found.order.max() < len(labels)
    assert len(set(found.order.tolist())) == len(found.order) == found.start[-1]
    assert found.start[0] == 0 and len(found.start) == settings.clients + 1
    for i, (train, test) in enumerate(parts(found)):
        assert len(train) == found.train[i] >= settings.min_samples
        assert len(test) == found.test[i] >= 1
        assert np.bincount(labels[train], minlength=10).tolist() == found.train_counts[i].tolist()


@pytest.mark.parametrize("labels", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("sizes", ["equal", "lognormal"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_client", [0, 50])
def test_every_sample_once_and_counts_that_agree(
    labels: np.ndarray, sizes: str, kind: str, per_client: int
) -> None:
    settings = data(
        labels=kind,
        sizes=sizes,
        train_per_client=per_client,
        min_samples=5,
        clients=12,
        classes_per_client=5,
        sigma=0.5,
        alpha=0.2,
    )
    found = assign(labels, settings, 3)
    check(labels, settings, found)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_asked_for_are_exact(kind: str) -> None:
    found = assign(EVEN, data(labels=kind, train_per_client=90), 0)
    # 90 * 0.25 / 0.75
    assert set(found.train) == {90} and set(found.test) == {30}
    found = assign(EVEN, data(labels=kind, train_per_client=90, test_per_client=7), 0)
    assert set(found.train) == {90} and set(found.test) == {7}


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "groups"])
def test_an_equal_share_of_the_pool(kind: str) -> None:
    found = assign(UNEVEN, data(labels=kind, clients=27), 0)
    # 5500 // 27 = 203; round(203 / 4) = 51.
    assert set(found.train) == {152} and set(found.test) == {51}


def test_the_whole_pool_can_be_used() -> None:
    found = assign(EVEN, data(labels="dirichlet", alpha=0.1, clients=35), 0)
    assert sorted(found.order) == list(range(7000))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same(kind: str) -> None:
    settings = data(labels=kind, sizes="lognormal", concept="permute", concept_groups=3)
    first, again, other = (assign(EVEN, settings, seed) for seed in (4, 4, 5))
    for key in vars(first):
        assert np.array_equal(getattr(first, key), getattr(again, key))
    assert not np.array_equal(first.order, other.order)


def test_training_rows_are_not_sorted_by_class() -> None:
    train, _ = parts(assign(EVEN, data(labels="iid"), 0))[0]
    # Sorted, 262 rows of 10 classes change class 9 times; at random about 235 times.
    assert np.count_nonzero(np.diff(EVEN[train])) > 150


# Label mixes


def test_iid_has_the_mix_of_the_pool() -> None:
    found = assign(UNEVEN, data(labels="iid", clients=5), 0)
    share = counted(UNEVEN, found) / 1100
    # Standard deviation at most sqrt(0.18 * 0.82 / 1100) = 0.012; six of them.
    assert np.abs(share - np.arange(1, 11) / 55).max() < 0.07


def test_iid_is_drawn_at_random() -> None:
    counts = counted(EVEN, assign(EVEN, data(labels="iid", clients=10), 0))
    assert counts.std() > 2  # 70 of each class, give or take 7.5; a stratified deal gives 0


def test_small_alpha_gives_a_client_one_class() -> None:
    found = assign(EVEN, data(labels="dirichlet", alpha=1e-3, train_per_client=30, clients=50), 0)
    top = found.train_counts.max(axis=1) / found.train
    assert np.median(top) == 1.0


def test_large_alpha_gives_the_mix_of_the_pool() -> None:
    found = assign(
        UNEVEN, data(labels="dirichlet", alpha=1e6, clients=5, test_per_client=100, train_per_client=450), 0
    )
    expected = 550 * np.arange(1, 11) / 55
    assert np.abs(counted(UNEVEN, found) - expected).max() < 2.5


def test_dirichlet_has_the_variance_of_its_law() -> None:
    # A component of Dirichlet(0.5 x 10) has mean 0.1, variance 0.1 * 0.9 / (5 + 1) = 0.015.
    found = assign(
        np.repeat(np.arange(10), 7000),
        data(labels="dirichlet", alpha=0.5, clients=400, train_per_client=75),
        0,
    )
    share = found.train_counts / 75
    assert share.mean() == pytest.approx(0.1)
    assert 0.012 < share.var() < 0.018


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1e6])
@pytest.mark.parametrize("kind", ["dirichlet", "groups"])
def test_extreme_alpha_with_the_pool_used_up(kind: str, alpha: float) -> None:
    settings = data(labels=kind, alpha=alpha, sizes="lognormal", clients=40)
    found = assign(UNEVEN, settings, 1)
    check(UNEVEN, settings, found)
    assert len(found.order) == 40 * (5500 // 40)


@pytest.mark.parametrize("each", [1, 2, 3, 7, 10])
def test_exactly_so_many_classes_each_used_equally_often(each: int) -> None:
    found = assign(EVEN, data(labels="classes", classes_per_client=each, clients=20), 0)
    counts = counted(EVEN, found)
    assert set((counts > 0).sum(axis=1)) == {each}
    assert ((found.train_counts > 0) == (counts > 0)).all()
    uses = (counts > 0).sum(axis=0)
    assert uses.max() - uses.min() <= 1
    for row in counts:
        assert row[row > 0].max() - row[row > 0].min() <= 1


def test_classes_that_run_out_make_clients_smaller_not_mixed() -> None:
    settings = data(labels="classes", classes_per_client=2, clients=20)
    found = assign(UNEVEN, settings, 0)
    check(UNEVEN, settings, found)
    counts = counted(UNEVEN, found)
    assert ((counts > 0).sum(axis=1) == 2).all()
    # Class 0 has 100 samples for 4 clients, so those have at most 25 of it, and as many else.
    assert counts[counts[:, 0] > 0].sum(axis=1).max() <= 51


def test_groups_share_one_mix() -> None:
    found = assign(
        EVEN, data(labels="groups", label_groups=4, alpha=0.3, clients=22, train_per_client=120), 0
    )
    sizes = np.bincount(found.label_group)
    assert sizes.tolist() == [6, 6, 5, 5]
    share = counted(EVEN, found) / 160
    for group in range(4):
        mine = share[found.label_group == group]
        assert np.ptp(mine, axis=0).max() < 3 / 160
    means = [share[found.label_group == g].mean(axis=0) for g in range(4)]
    assert min(np.abs(means[0] - m).sum() for m in means[1:]) > 0.2


def test_test_part_has_the_labels_of_the_training_part() -> None:
    found = assign(EVEN, data(labels="dirichlet", alpha=0.3), 0)
    for i, (_, test) in enumerate(parts(found)):
        tests = np.bincount(EVEN[test], minlength=10)
        whole = tests + found.train_counts[i]
        assert np.abs(tests - whole * found.test[i] / whole.sum()).max() < 1


def test_no_test_of_a_class_never_trained_on_with_enough_samples() -> None:
    found = assign(EVEN, data(labels="dirichlet", alpha=0.1), 0)
    for i, (_, test) in enumerate(parts(found)):
        seen = set(np.flatnonzero(found.train_counts[i]))
        assert set(EVEN[test]) <= seen


def test_second_choices_count_when_the_first_runs_out() -> None:
    """Both want class 0 only, which has half of what they ask; e^-500 is still more than e^-900."""
    log_mix = np.array([[0.0, -500.0, -900.0], [0.0, -900.0, -500.0]])
    demand = fit(log_mix, np.array([10, 10]), np.array([10, 10, 10]))
    assert demand.sum(axis=1) == pytest.approx([10, 10]) and demand[:, 0] == pytest.approx([5, 5])
    assert demand[0, 1] > 1.3 * demand[0, 2] and demand[1, 2] > 1.3 * demand[1, 1]


def test_rounding_needs_a_chain_of_moves() -> None:
    """Class 0 can only be relieved through class 1, and that only through class 2."""
    demand = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]])
    for seed in range(200):
        found = round_within(demand, np.ones(4, int), np.array([1, 2, 1]), np.random.default_rng(seed))
        assert found.sum(axis=1).tolist() == [1, 1, 1, 1]
        assert found.sum(axis=0).tolist() == [1, 2, 1]
        assert (found[demand == 0] == 0).all()
