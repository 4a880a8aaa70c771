"""What newcomers bring to a trained network: their own samples, as its clients had theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amn_mpi.config import Config, Model
from amn_mpi.data import Federation, arrivals
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.rng import generator


def federation(**changes: Any) -> Federation:
    facts = {
        "name": "digits",
        "x_dtype": "|u1",
        "shape": [1, 3, 3],
        "class_names": list("0123"),
        "scale": 0.5,
    }
    return Federation.of_facts({**facts, "shift": -1.0, "train": [30, 20], "test": [9, 8], **changes})


def written(folder: Path, **arrays: object) -> str:
    np.savez(folder / "mine.npz", **arrays)
    return str(folder / "mine.npz")


def pixels(n: int) -> np.ndarray:
    return np.arange(9 * n, dtype=np.uint8).reshape(n, 3, 3)


def placed(name: str, fed: Federation) -> tuple[Federation, np.ndarray]:
    """Who has how many samples, and the numbers of the samples as they lie in the prepared file."""
    found = arrivals.plan(arrivals.read(name, fed), fed, 0.25, 0)
    return found.federation, found.order


def test_facts_come_back() -> None:
    fed = federation()
    again = Federation.of_facts(json.loads(json.dumps(fed.facts())))
    assert again.facts() == fed.facts()
    assert (again.shape, again.clients, again.classes) == ((1, 3, 3), 2, 4)
    assert again.client_names == [] and again.called(1) == "1"  # as checkpoints from before names have it
    named = Federation.of_facts({**fed.facts(), "client_names": ["east", "west"]})
    assert named.called(1) == "1 west"


def test_the_order_of_the_file_stays(tmp_path: Path) -> None:
    mask = np.array([1, 0, 0, 1, 0, 0], bool)
    fed, order = placed(written(tmp_path, x=pixels(6), y=np.arange(6) % 4, test=mask), federation())
    assert order.tolist() == [1, 2, 4, 5, 0, 3] and (fed.train, fed.test) == ([4], [2])
    fed, order = placed(
        written(tmp_path, x=pixels(3), y=np.arange(3), x_test=pixels(2), y_test=np.arange(2)), federation()
    )
    assert order.tolist() == [0, 1, 2, 3, 4] and (fed.train, fed.test) == ([3], [2])
    assert (fed.scale, fed.shift, fed.class_names) == (0.5, -1.0, list("0123"))


def test_a_test_part_is_taken_by_class(tmp_path: Path) -> None:
    """A quarter of 40 samples: of 20, 12 and 8 in a class 5, 3 and 2, wherever they stand."""
    y = generator(0, "labels").permutation(np.repeat([0, 1, 3], [20, 12, 8]))
    fed, order = placed(written(tmp_path, x=pixels(40), y=y), federation())
    assert np.bincount(y[order[30:]]).tolist() == [5, 3, 0, 2]
    assert fed.train_counts.tolist() == [[15, 9, 0, 6]]
    again = written(tmp_path, x=pixels(40), y=y, client=np.array(["me"] * 40))
    assert placed(again, federation())[1].tolist() == order.tolist()
    # The first of several gets the same part as alone: nobody's draw hangs on the others.
    more = written(tmp_path, x=pixels(80), y=np.tile(y, 2), client=np.repeat(["me", "you"], 40))
    assert placed(more, federation())[1][:40].tolist() == order.tolist()


def test_two_samples_are_enough(tmp_path: Path) -> None:
    fed, _ = placed(written(tmp_path, x=pixels(2), y=np.array([1, 1])), federation())
    assert (fed.train, fed.test) == ([1], [1])


def test_labels_are_the_runs_classes(tmp_path: Path) -> None:
    """By name where there are names; else by number, or by place where the run's names are words."""
    words, x = federation(class_names=["cat", "dog", "cow"]), pixels(4)
    y = np.array([0, 2, 2, 0])
    named = written(tmp_path, x=x, y=y, class_names=["cow", "eel", "cat"])
    assert arrivals.read(named, words).y.tolist() == [2, 0, 0, 2]
    assert arrivals.read(written(tmp_path, x=x, y=y), words).y.tolist() == [0, 2, 2, 0]
    gaps = federation(class_names=["0", "2", "5"])
    assert arrivals.read(written(tmp_path, x=x, y=y), gaps).y.tolist() == [0, 1, 1, 0]
    assert arrivals.read(written(tmp_path, x=x, y=np.array([5, 5, 0, 2])), gaps).y.tolist() == [2, 2, 0, 1]
    with pytest.raises(UserError, match=r"y has the label 1; the run had 3 classes: 0, 2, 5$"):
        arrivals.read(written(tmp_path, x=x, y=np.array([1, 1, 0, 2])), gaps)
    with pytest.raises(UserError, match=r"y has the label eel; the run had 3 classes: cat, dog, cow$"):
        arrivals.read(written(tmp_path, x=x, y=y + 1 - (y > 0), class_names=["cow", "eel", "cat"]), words)


def test_floats_and_folders(tmp_path: Path) -> None:
    fed = federation(x_dtype="<f4", shape=[2], scale=1.0, shift=0.0)
    for name in ("b", "a"):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((4, 2)), y=np.array([0, 1, 3, 3]))
    found, _ = placed(str(tmp_path), fed)
    assert found.clients == 2 and arrivals.read(str(tmp_path), fed).client_names == ("a.npz", "b.npz")
    np.savez(tmp_path / "b.npz", x=np.ones((0, 2)), y=np.zeros(0, int))
    with pytest.raises(UserError, match=r"b.npz: y is empty"):
        arrivals.read(str(tmp_path), fed)


SMALLER = np.zeros((4, 2, 2), np.uint8)
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"x": SMALLER}, r"shape \(1, 2, 2\) of pixels \(uint8\); the run had \(1, 3, 3\) of pixels"),
    "floats": ({"x": np.zeros((4, 1, 3, 3))}, r"shape \(1, 3, 3\) of floats; the run had \(1, 3, 3\) of pix"),
    "nan": ({"x": np.full((4, 9), np.nan)}, r"x has values that are NaN or infinite in 4 of 4 rows"),
    "label": ({"y": np.array([0, 1, 2, 4])}, r"y has the label 4; the run had 4 classes: 0, 1, 2, 3$"),
    "negative": ({"y": np.array([0, 1, 2, -4])}, r"y has the label -4, expected 0 or more"),
    "text": ({"y": np.array(list("abca"))}, r"y is text, expected \(n,\) integers; the run had 4 classes"),
    "fractions": ({"y": np.arange(4.0)}, r"y has shape \(4,\) and type float64, expected \(n,\) integers"),
    "one": ({"x": pixels(1), "y": np.array([1])}, r"newcomer mine: has 0 training and 1 test samples"),
    "nobody": ({"x": pixels(0), "y": np.array([], int)}, r"y is empty"),
    "untested": ({"test": np.zeros(4, bool)}, r"newcomer mine: has 4 training and 0 test samples; valid"),
    "untrained": ({"client": np.array(list("aaab"))}, r"newcomer b: has 0 training and 1 test samples"),
    "mask": ({"test": np.zeros(3, bool)}, r"test has shape \(3,\) and type bool, expected \(4,\) bool"),
    "rows": ({"y": np.arange(3)}, r"x has shape \(4, 3, 3\), expected 3 rows, as many as y"),
    "half": ({"x_test": pixels(1)}, r"has no array y_test; expected x and y, with x_test and y_test or not"),
    "tests": ({"x_test": SMALLER, "y_test": np.arange(4)}, r"x_test has shape \(4, 2, 2\) and type uint8, x"),
    "scalar": ({"x_test": pixels(1), "y_test": np.int64(1)}, r"y_test has shape \(\) and type int64, y has"),
    "both": ({"x_test": pixels(4), "y_test": np.arange(4), "test": np.zeros(4, bool)}, r"has both test and"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used(tmp_path: Path, case: str) -> None:
    arrays, line = WRONG[case]
    name = written(tmp_path, **{"x": pixels(4), "y": np.arange(4), **arrays})
    with pytest.raises(UserError, match=line) as refused:
        placed(name, federation())
    assert "\n" not in str(refused.value)


def test_a_missing_array(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no array x; expected x and y, found y$"):
        arrivals.read(written(tmp_path, y=np.arange(4)), federation())


@pytest.mark.parametrize("name", ["gone.npz", "digits", "notes.txt"])
def test_what_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("")
    with pytest.raises(
        ConfigError, match=rf"--data {name}: .*; valid is a file that ends in .h5, .hdf5, .npz"
    ):
        arrivals.read(name, federation())


def test_tokens_that_the_run_did_not_know(tmp_path: Path) -> None:
    fed = federation(x_dtype="<f4", shape=[3], scale=1.0, shift=0.0)
    config = Config(model=Model(name="text", vocabulary=8))
    for last, says in ((8, "has the token 8"), (7, "")):
        texts = np.array([[1, 2, 0], [3, last, 0], [4, 5, 6], [1, 0, 0]])
        raw = arrivals.read(written(tmp_path, x=texts, y=np.arange(4)), fed)
        if not says:
            with arrivals.prepared(raw, fed, config, tmp_path) as late:
                assert late.clients == 1
            continue
        with pytest.raises(UserError, match=says) as refusal:
            arrivals.prepared(raw, fed, config, tmp_path).__enter__()
        assert "client 0 (mine)" in str(refusal.value) and "to 7" in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]
