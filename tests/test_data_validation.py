"""A part of the training samples in place of the test samples: how many, which, and no test row read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
from running import result
from test_data_helpers import forget_folders, settings, write_marked

from amn_mpi.config import Data
from amn_mpi.data import Federation, describe, load_clients, prepare
from amn_mpi.data.validation import hold_out
from amn_mpi.errors import ConfigError


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_folders(monkeypatch)


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    return write_marked(tmp_path)


def federation(train: list[int], test: list[int], classes: int = 3) -> Federation:
    rows, n = np.array(train) + test, len(train)
    none = np.zeros(n, np.int64)
    return Federation(
        name="made", path="", x_offset=0, y_offset=0, x_dtype="|u1", shape=(1,),
        class_names=[str(c) for c in range(classes)], scale=1.0, shift=0.0,
        start=np.r_[0, np.cumsum(rows)], train=np.array(train), test=np.array(test),
        train_counts=np.zeros((n, classes), np.int64), label_group=none, concept_group=none,
    )  # fmt: skip


def numbers(x: np.ndarray) -> list[int]:
    """The number of each marked image as loaded."""
    pixels = np.rint((x[:, 0, 0, :2] + 1) * 127.5).astype(int)
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


# ---- counts


def test_counts_by_hand() -> None:
    """Client 0: rows 0-3 train, 4-5 validate, 6-7 its true tests; client 1 from row 8, client 2 from 13."""
    labels = np.array([0, 1, 1, 2, 0, 0, 2, 2, 1, 0, 2, 2, 2, 2, 1, 0, 0])
    fed = federation([6, 2, 3], [2, 3, 1])
    held = hold_out(fed, 0.3, labels)
    assert held.train.tolist() == [4, 1, 2] and held.test.tolist() == [2, 1, 1]
    assert held.train_counts.tolist() == [[1, 2, 1], [0, 1, 0], [0, 1, 1]]
    assert held.start.tolist() == fed.start.tolist()
    assert fed.train.tolist() == [6, 2, 3], "the one given is changed"
    left = {f.name for f in dataclasses.fields(fed)} - {"train", "test", "train_counts"}
    assert all(getattr(held, name) is getattr(fed, name) for name in left)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0.01, [1, 1, 1]), (0.25, [25, 2, 1]), (0.5, [50, 5, 1]), (0.9, [90, 9, 1]), (0.999999, [99, 9, 1])],
)
def test_at_least_one_is_held_out_and_one_stays(fraction: float, expected: list[int]) -> None:
    fed = federation([100, 10, 2], [7, 7, 7])
    held = hold_out(fed, fraction, np.zeros(133, np.int64))
    assert held.test.tolist() == expected
    assert (held.train + held.test).tolist() == [100, 10, 2]
    assert held.train_counts.sum(1).tolist() == held.train.tolist()
    assert held.train.dtype == held.test.dtype == np.int64


def test_without_a_fraction_nothing_changes() -> None:
    fed = federation([1, 5], [2, 2])
    assert hold_out(fed, 0.0, np.empty(0)) is fed


def test_a_client_with_one_sample_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        hold_out(federation([5, 1, 4], [2, 2, 2]), 0.25, np.zeros(16, np.int64))
    line = str(caught.value)
    assert "\n" not in line and "data.validation = 0.25: client 1 has 1 training sample" in line
    assert "data.min_samples" in line


def test_a_client_with_one_sample_is_refused_by_both_ways(marked: Path) -> None:
    few: dict[str, Any] = {"train_per_client": 1, "test_per_client": 3, "min_samples": 1, "labels": "iid"}
    for way in (prepare, describe):
        assert way(settings(marked, **few), 0).train.tolist() == [1] * 6
        with pytest.raises(ConfigError, match=r"data\.validation = 0\.5: client 0 has 1 training sample"):
            way(settings(marked, **few, validation=0.5), 0)


# ---- rows


KINDS: list[dict[str, Any]] = [
    {},
    {"concept": "permute", "concept_groups": 3},
    {"concept": "rotate", "concept_groups": 4, "labels": "groups", "label_groups": 2},
    {"sizes": "lognormal", "sigma": 1.0, "labels": "classes", "classes_per_client": 3},
    {"labels": "iid", "train_per_client": 20, "test_per_client": 30},
]


@pytest.mark.parametrize("kind", KINDS)
def test_validation_rows_are_training_rows(marked: Path, kind: dict[str, Any]) -> None:
    """Together they are the original training samples in their order; none of the tests is among them."""
    whole, held = prepare(settings(marked, **kind), 1), prepare(settings(marked, **kind, validation=0.3), 1)
    assert np.array_equal(held.train + held.test, whole.train)
    assert held.test.tolist() == np.clip(np.rint(0.3 * whole.train), 1, whole.train - 1).tolist()
    for i, (a, b) in enumerate(zip(load_clients(whole, range(6)), load_clients(held, range(6)))):
        assert np.array_equal(a.x_train, np.concatenate([b.x_train, b.x_test]))
        assert np.array_equal(a.y_train, np.concatenate([b.y_train, b.y_test]))
        assert np.bincount(b.y_train, minlength=6).tolist() == held.train_counts[i].tolist()


def test_the_marks_of_validation_rows(marked: Path) -> None:
    whole, held = prepare(settings(marked), 0), prepare(settings(marked, validation=0.25), 0)
    tests = {n for client in load_clients(whole, range(6)) for n in numbers(client.x_test)}
    used = [n for c in load_clients(held, range(6)) for n in (*numbers(c.x_train), *numbers(c.x_test))]
    assert len(used) == len(set(used)) == 600 - len(tests)
    assert not tests & set(used)


@pytest.mark.parametrize("kind", KINDS)
def test_describe_agrees_with_prepare(marked: Path, kind: dict[str, Any]) -> None:
    data = settings(marked, **kind, validation=0.4)
    told, found = describe(data, 2), prepare(data, 2)
    again = prepare(data, 2)  # from the cache
    for name in ("start", "train", "test", "train_counts", "label_group", "concept_group"):
        assert np.array_equal(getattr(told, name), getattr(found, name)), name
        assert np.array_equal(getattr(again, name), getattr(found, name)), name
        assert getattr(told, name).dtype == getattr(found, name).dtype, name


def test_one_cache_file_serves_every_fraction(marked: Path) -> None:
    found = {prepare(settings(marked, validation=part), 0).path for part in (0.0, 0.1, 0.5)}
    assert len(found) == 1 and len(list((marked.parent / "cache").iterdir())) == 1


def test_labels_are_counted_as_clients_see_them(tmp_path: Path) -> None:
    """On the embedded digits, with labels permuted in one of two groups."""
    data = Data(cache=str(tmp_path), clients=7, concept="permute", concept_groups=2, validation=0.2)
    held = prepare(data, 3)
    counts = [np.bincount(c.y_train, minlength=10) for c in load_clients(held, range(7))]
    assert np.array_equal(held.train_counts, counts)


# ---- no test row is read


def poison(fed: Federation) -> None:
    """Other images and labels in every true test row of a cache file."""
    pixels = np.memmap(fed.path, fed.x_dtype, "r+", fed.x_offset, (int(fed.start[-1]), *fed.shape))
    labels = np.memmap(fed.path, np.int32, "r+", fed.y_offset, (int(fed.start[-1]),))
    for first, train, test in zip(fed.start, fed.train, fed.test):
        rows = slice(first + train, first + train + test)
        pixels[rows] = pixels[rows][::-1] // 2
        labels[rows] = (labels[rows] + 1) % fed.classes
    pixels.flush()
    labels.flush()


def test_poisoned_test_rows_change_nothing_but_tests(marked: Path) -> None:
    whole, held = prepare(settings(marked), 0), prepare(settings(marked, validation=0.3), 0)
    before = [load_clients(fed, range(6)) for fed in (whole, held)]
    poison(whole)
    after = [load_clients(fed, range(6)) for fed in (whole, held)]
    assert not any(np.array_equal(a.x_test, b.x_test) for a, b in zip(before[0], after[0]))
    for a, b in zip(before[1], after[1]):
        for name in ("x_train", "y_train", "x_test", "y_test"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_a_run_on_validation_data_reads_no_test_row(tmp_path: Path) -> None:
    """The file's checksum is over labels: only the images of the tests may be poisoned unnoticed."""
    keys: dict[str, Any] = {
        "clients": 4,
        "train_per_client": 24,
        "test_per_client": 12,
        "cache": str(tmp_path / "cache"),
    }
    words = [word for key, value in keys.items() for word in (f"--data.{key}", value)]
    words += ["--rounds", 2, "--local.steps", 2, "--model.name", "linear", "--method.name", "fedavg_ft"]
    words += ["--progress", "off", "--data.validation", 0.25]
    found = []
    for name in ("clean", "poisoned"):
        plain.here(*words, "--out", tmp_path / name)
        found.append(result(tmp_path / name))
        fed = prepare(Data(**keys), 0)
        pixels = np.memmap(fed.path, fed.x_dtype, "r+", fed.x_offset, (int(fed.start[-1]), *fed.shape))
        for first, train, test in zip(fed.start, fed.train, fed.test):
            pixels[first + train : first + train + test] = 7
        pixels.flush()
    assert len(list((tmp_path / "cache").iterdir())) == 1, "the cache was written anew"
    for key in ("models_sha256", "per_client", "mean_last5", "worst10"):
        assert found[0][key] == found[1][key], key
    assert found[0]["per_client"]["train_samples"] == [18] * 4
    assert found[0]["per_client"]["test_samples"] == [6] * 4
