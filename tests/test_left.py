"""What leaves a client's rank: the messages themselves are looked at, in runs on 3 ranks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import REPOSITORY, result, run

from amn_mpi.left import together
from amn_mpi.methods import METHODS, get
from amn_mpi.methods.base import Wire

SCRIPT = REPOSITORY / "tests" / "scripts" / "left.py"
ROUNDS, CLIENTS, OWNERS, SKETCH, CHOSEN = 3, 6, 2, 50, 2
KEYS = ("--rounds", ROUNDS, "--data.clients", CLIENTS, "--local.epochs", 1, "--model.hidden", 8)
OPTIONS = {
    "amn": ("--method.sketch", SKETCH, "--method.common_rounds", 1),
    "fedfomo": ("--method.models", CHOSEN),
    "fedavg": (),
    "scaffold": (),
    "ifca": ("--method.groups", 2),
}
SHARDED = "amn, sharded"
LEAKY = ("leaky_rows", "leaky_mean", "leaky_labels")


@dataclass(frozen=True)
class Looked:
    """A run: its result, and what was seen on each rank with clients."""

    result: dict[str, Any]
    ranks: list[dict[str, Any]]

    @property
    def hits(self) -> set[str]:
        return {hit for rank in self.ranks for hit in rank["hits"]}

    def bytes(self, what: str, *kinds: str) -> int:
        return sum(rank[what].get(kind, 0) for rank in self.ranks for kind in kinds)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Looked]:
    folder = tmp_path_factory.mktemp("left")
    names = [*OPTIONS, SHARDED, *LEAKY]
    lines = []
    for name in names:
        more = ("--server", "sharded") if name == SHARDED else ()
        method = name.split(",")[0]
        words = (*KEYS, "--method.name", method, *OPTIONS.get(method, ()), *more, "--out", folder / name)
        lines.append([*map(str, words), "--progress", "off", "--device", "cpu", "--checkpoint.every", "1"])
    path = folder / "lines.json"
    path.write_text(json.dumps(lines))
    done = run(path, folder, ranks=OWNERS + 1, script=SCRIPT, env={"AMN_CACHE": folder / "c"}, timeout=240)
    assert done.returncode == 0, done.stderr
    return {
        name: Looked(
            result(folder / name),
            [json.loads((folder / f"{k}-{rank}.json").read_text()) for rank in range(1, OWNERS + 1)],
        )
        for k, name in enumerate(names)
    }


@pytest.mark.parametrize("name", [*OPTIONS, SHARDED])
def test_no_sample_leaves(runs: dict[str, Looked], name: str) -> None:
    looked = runs[name]
    assert looked.hits == set()
    for rank in looked.ranks:  # there was something to find, and something to find it in
        assert rank["secrets"]["sample"] > 500 and rank["secrets"]["labels"] >= 10
        assert rank["messages"]["collect"] >= 2 and rank["messages"]["gather_rows"] >= ROUNDS
        assert rank["messages"]["slot"] == ROUNDS * CLIENTS // OWNERS


@pytest.mark.parametrize(
    "name, hits",
    [
        ("leaky_rows", {"sample in gather_rows", "sample in slot"}),
        ("leaky_mean", {"sample in slot"}),
        ("leaky_labels", {"labels in gather_rows"}),
    ],
)
def test_a_leak_is_found(runs: dict[str, Looked], name: str, hits: set[str]) -> None:
    assert runs[name].hits == hits


@pytest.mark.parametrize("name", list(OPTIONS))
def test_kinds_are_the_messages(runs: dict[str, Looked], name: str) -> None:
    """The sum of the kinds: what was kept of the messages, and what the ranks count as sent."""
    looked = runs[name]
    left = sum(looked.result["left"].values())
    assert left == looked.bytes("sent", "gather_rows", "sum_exact", "flow")
    assert left == looked.bytes("counted", "gather", "reduce", "checkpoint")


def test_sharded_rows(runs: dict[str, Looked]) -> None:
    """Half of each client's columns stay; hybrids on their way to others are not a client's."""
    plain, sharded = (Counter(runs[name].result["left"]) for name in ("amn", SHARDED))
    own = 4 * runs["amn"].result["parameters"] * CLIENTS * ROUNDS
    each = own // ROUNDS  # in round 1 no gradient goes up
    assert 0 < sharded["gradients"] < own - each == plain["gradients"]
    there = sharded["parameters"] - each  # without models.h5
    assert there == sharded["gradients"] // 2 * 3
    swapped = runs[SHARDED].bytes("sent", "swap")
    # Model and gradient there, one hybrid and one mean of drifts back.
    assert there + sharded["gradients"] + 2 * there == swapped
    rest = {"parameters", "gradients"}
    assert {k: v for k, v in plain.items() if k not in rest} == {
        k: v for k, v in sharded.items() if k not in rest
    }


def _expected(name: str, size: int) -> dict[str, int]:
    """Bytes by kind, worked out from the papers' rounds: float32 vectors, 64-bit sums and numbers."""
    turns = CLIENTS * ROUNDS
    final, rows, sums = 4 * size * CLIENTS, 4 * size * turns, 8 * size * OWNERS * ROUNDS
    every = {"seconds": 8 * turns}
    if name == "amn":
        vectors = {"parameters": rows + final, "gradients": rows // 3 * 2, "reaches": 8 * turns}
        vectors["kept state"] = 3 * rows
        sketches = 4 * SKETCH * 2 * turns
        return {**every, **vectors, "sketches": sketches, "counts": 3 * 8 * turns}
    if name == "fedfomo":
        vectors = {"parameters": rows + final, "kept state": 2 * rows}
        return {**every, **vectors, "weights": CHOSEN * 8 * turns, "counts": 8 * turns}
    if name == "scaffold":
        vectors = {"parameter differences": sums, "control variates": sums, "parameters": final}
        return {**every, **vectors, "kept state": rows, "counts": 8 * turns}
    if name == "ifca":
        return {**every, "parameters": 2 * sums + final, "choices": 8 * turns, "counts": 8 * turns}
    return {**every, "parameters": sums + final, "counts": 8 * turns}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_bytes_of_each_kind(runs: dict[str, Looked], name: str) -> None:
    found = runs[name].result
    assert found["left"] == _expected(name, found["parameters"])


def test_one_rank_sends_nothing(tmp_path: Path) -> None:
    out = tmp_path / "one"
    done = run(*KEYS, "--rounds", 1, "--out", out, "--progress", "off", env={"AMN_CACHE": tmp_path})
    assert done.returncode == 0, done.stderr
    assert result(out)["left"] == {}


def test_a_kind_for_each_vector() -> None:
    with pytest.raises(ValueError, match="1 kinds; valid is one for each returned vector"):
        Wire("none", "rows", returned=2)
    with pytest.raises(ValueError, match="3 kinds"):
        Wire("none", "rows", returned=2, kinds=("a", "b", "c"))
    assert Wire("none", "none", received=0, returned=0).kinds == ("parameters",)


def test_what_the_methods_declare() -> None:
    """Methods that return anything but models, by their papers."""
    differ = {
        name: get(name).wire.kinds
        for name in METHODS
        if hasattr(get(name), "wire") and get(name).wire.kinds != ("parameters",)
    }
    assert differ == {
        "amn": ("parameters", "gradients"),
        "scaffold": ("parameter differences", "control variates"),
        "pfedhn": ("parameter differences",),
    }


def test_accounts_together() -> None:
    assert together([{}, {"b": 1, "a": 2}, {"b": 10}]) == {"a": 2, "b": 11}
