"""How much each client gets, what is refused, and the hidden groups of the concept."""

from __future__ import annotations

import numpy as np
import pytest

from amn_mpi.config import Data
from amn_mpi.data import concept
from amn_mpi.data.heterogeneity import assign
from amn_mpi.data.sizes import apportion
from amn_mpi.errors import ConfigError

EVEN = np.repeat(np.arange(10), 700)
# Class c has 100 (c + 1) samples: 5,500 in all.
UNEVEN = np.repeat(np.arange(10), 100 * np.arange(1, 11))


def data(**keys: object) -> Data:
    return Data(**{"name": "toy", "clients": 20, "concept": "none", **keys})


def test_lognormal_sizes() -> None:
    found = assign(
        np.repeat(np.arange(10), 7000), data(sizes="lognormal", sigma=1.0, clients=500, labels="iid"), 0
    )
    assert found.train.sum() == 500 * 105 and found.test.sum() == 500 * 35
    assert found.train.min() >= 10
    # The logarithms spread with sigma (less a little, for the smallest are held up).
    assert 0.8 < np.log(found.train).std() < 1.1
    assert np.corrcoef(found.train, found.test)[0, 1] > 0.99


def test_lognormal_with_a_mean_asked_for() -> None:
    found = assign(EVEN, data(sizes="lognormal", train_per_client=100, sigma=2.0), 0)
    assert found.train.sum() == 2000 and found.train.min() == 10
    assert found.test.min() >= 1 and found.start[-1] <= 7000


def test_guaranteed_training_samples_come_before_the_test_fraction() -> None:
    found = assign(EVEN, data(clients=500, labels="iid"), 0)
    # 14 each: a quarter for tests would leave 10; with 12 asked for, 2 are left.
    assert set(found.train) == {10}
    found = assign(EVEN, data(clients=500, labels="iid", min_samples=12), 0)
    assert set(found.train) == {12} and set(found.test) == {2}


def test_apportion_by_hand() -> None:
    # 5 held up to 10; the other 90 go 2 : 4 to the rest.
    assert apportion(np.array([0.1, 2.0, 4.0]), 100, 10).tolist() == [10, 30, 60]
    assert apportion(np.array([1.0, 1.0, 1.0]), 10, 1).tolist() == [4, 3, 3]
    assert apportion(np.array([5.0, 1.0]), 6, 3).tolist() == [3, 3]


# Asking too much


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train_per_client": 300}, ["data.clients = 20", "data.train_per_client", "8000", "7000"]),
        ({"clients": 8000}, ["data.clients = 8000", "7000"]),
        ({"clients": 700}, ["data.clients = 700", "data.min_samples", "10"]),
        ({"test_per_client": 345}, ["data.test_per_client", "345"]),
        ({"train_per_client": 5}, ["data.train_per_client = 5", "data.min_samples = 10"]),
        ({"labels": "classes", "classes_per_client": 11}, ["data.classes_per_client = 11", "10"]),
        (
            {"labels": "classes", "classes_per_client": 10, "train_per_client": 4, "min_samples": 1},
            ["data.classes_per_client = 10", "4 training"],
        ),
        ({"labels": "groups", "label_groups": 21}, ["data.label_groups = 21", "data.clients = 20"]),
        ({"concept": "rotate", "concept_groups": 3}, ["data.concept_groups = 3", "2 or 4"]),
        ({"concept": "permute", "concept_groups": 11}, ["data.concept_groups = 11", "10"]),
        ({"concept": "permute", "concept_groups": 4, "clients": 3}, ["data.concept_groups = 4"]),
    ],
)
def test_what_cannot_be_had_is_refused(keys: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        assign(EVEN, data(**keys), 0)
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


def test_class_that_runs_out_with_fixed_sizes_is_refused() -> None:
    with pytest.raises(ConfigError, match="class 0 ask for .* has 100; lower data.train_per"):
        assign(UNEVEN, data(labels="classes", classes_per_client=2, train_per_client=100), 0)


def test_class_that_leaves_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="data.min_samples = 60"):
        assign(UNEVEN, data(labels="classes", classes_per_client=2, min_samples=60), 0)


# Concept


def test_concept_groups_are_nearly_equal_and_apart_from_label_groups() -> None:
    settings = data(labels="groups", label_groups=2, concept="permute", concept_groups=2, clients=41)
    both = np.zeros((2, 2))
    for seed in range(30):
        found = assign(EVEN, settings, seed)
        assert np.bincount(found.concept_group).tolist() == [21, 20]
        np.add.at(both, (found.label_group, found.concept_group), 1)
    # Independent: 1,230 clients spread over the four pairs, 307 each, spread about 9.
    assert both.min() > 250


def test_no_concept_no_groups() -> None:
    found = assign(EVEN, data(), 0)
    assert not found.concept_group.any() and not found.label_group.any()


@pytest.mark.parametrize("groups", [2, 3, 10])
def test_relabellings_differ_in_every_class(groups: int) -> None:
    settings = data(concept="permute", concept_groups=groups)
    table = concept.relabelling(settings, 10, 0)
    assert table[0].tolist() == list(range(10))
    assert all(sorted(row) == list(range(10)) for row in table)
    for y in range(10):
        assert len(set(table[:, y])) == groups


def test_relabelling_is_one_step_of_a_cycle() -> None:
    """Group 1's map must be one cycle through all classes, group 2's its square."""
    table = concept.relabelling(data(concept="permute", concept_groups=3), 7, 0)
    here, seen = 0, []
    for _ in range(7):
        seen.append(here)
        here = table[1, here]
    assert here == 0 and sorted(seen) == list(range(7))
    assert [table[1, table[1, y]] for y in range(7)] == table[2].tolist()
    assert seen != list(range(7)), "the order of the classes must be shuffled"


def test_quarter_turns_by_hand() -> None:
    image = np.array([[1, 2], [3, 4]], np.uint8)
    x = np.stack([image] * 4)[:, None]
    turned = concept.rotate(x, np.arange(4), 4)[:, 0].tolist()
    assert turned == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    half = concept.rotate(x[:2], np.array([0, 1]), 2)[:, 0].tolist()
    assert half == [[[1, 2], [3, 4]], [[4, 3], [2, 1]]]


@pytest.mark.parametrize("shape", [(7,), (1, 4, 5), (4, 4)])
def test_only_square_images_turn(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="data.concept = rotate"):
        concept.check_shape(data(concept="rotate"), shape)
    concept.check_shape(data(concept="rotate"), (3, 4, 4))
