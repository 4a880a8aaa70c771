"""scores.csv written and read back, and which kept runs hold. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amn_mpi import digest, kept, known, matrix
from amn_mpi.errors import UserError
from amn_mpi.methods import fedavg
from amn_mpi.scores import Score

NAN = math.nan
SOME = "00000-11111-22222-33333-44444"
HEAD = (
    "scenario,label,method,trial,seed,mean_last5,best_accuracy,worst10,"
    "round_seconds,bytes_sent,train_seconds,ranks,apart,version,digest"
)


def score(label: str = "a", seed: int = 0, value: float = 70.0, **keys: Any) -> Score:
    figures = {"mean_last5": value, "best_accuracy": value + 1, "worst10": value - 1}
    told = {"scenario": "s", "method": "local", "digest": SOME, "version": "0.1.0", **keys}
    cost = {"seconds": 0.5, "sent": 7, "trained": 12.5, "ranks": 3}
    return Score(label=label, seed=seed, figures=figures, **{**cost, **told})


def back(folder: Path, *scores: Score) -> list[Score]:
    (folder / "scores.csv").write_text(kept.text(scores))
    return kept.read(folder / "scores.csv")


# ---- the table


def test_a_line_of_the_table() -> None:
    one, other = score(curve={1: 10.04, 2: 20.06}), score("b", 4, trial=3, curve={2: 33.3}, apart="control")
    text = kept.text([one, other])
    assert text.splitlines() == [
        f"{HEAD},at1,at2",
        f"s,a,local,,0,70.0,71.0,69.0,0.5000,7,12.500,3,,0.1.0,{SOME},10.0,20.1",
        f"s,b,local,3,4,70.0,71.0,69.0,0.5000,7,12.500,3,control,0.1.0,{SOME},,33.3",
    ]
    assert kept.text([]) == f"{HEAD}\n"


def test_figures_come_back_to_the_last_bit(tmp_path: Path) -> None:
    """Else a mean that lies on an edge is rounded otherwise in tables made of kept runs."""
    values = [70.1, 1 / 3, 66.666667, 88.0 + 2**-40, 0.0, 100.0]
    found = [score(seed=k, value=1.0) for k in range(len(values))]
    found = [dataclasses.replace(s, figures=dict.fromkeys(s.figures, v)) for s, v in zip(found, values)]
    assert [s.figures["mean_last5"] for s in back(tmp_path, *found)] == values
    assert back(tmp_path, *found) == found


def test_the_table_comes_back_as_it_was(tmp_path: Path) -> None:
    names = ["plain", 'with "quotes", and commas', "a|b&c", "two\nlines", "ümläut †"]
    found = [
        score(name, seed, scenario=name, trial=seed - 1, curve={5: 1.5, 7: 2.5}, apart=name * seed)
        for name in names
        for seed in (0, 1)
    ]
    again = back(tmp_path, *found)
    assert again == found and kept.text(again) == kept.text(found)
    wild = score(value=NAN, seconds=NAN, trained=NAN, sent=0, ranks=0, version="")
    (other,) = back(tmp_path, wild)
    assert all(math.isnan(v) for v in (*other.figures.values(), other.seconds, other.trained))
    assert other.curve == {} and kept.text([other]) == kept.text([wild])


def test_a_table_may_hold_a_run_with_these_and_with_other_keys(tmp_path: Path) -> None:
    one, other = (score(digest=f"{k}a1b2-3c4d5-6e7f8-90a1b-2c3d4") for k in (0, 1))
    assert back(tmp_path, one, other) == [one, other]
    assert known.without([one, other], [other]) == [one]


def test_a_curve_keeps_some_dozen_rounds() -> None:
    every = {at: float(at) for at in range(1, 61)}
    assert list(kept.thinned(every)) == [1, *range(5, 61, 5)]
    assert list(kept.thinned({at: 0.0 for at in range(1, 41)})) == [1, *range(4, 41, 4)]
    assert list(kept.thinned({at: 0.0 for at in range(1, 2001)})) == [1, *range(167, 2000, 167), 2000]
    assert list(kept.thinned({1: 0.0, 2: 0.0, 3: 0.0})) == [1, 2, 3]
    assert kept.thinned({}) == {}
    # Evaluated every seventh round, and in the last five: the next one from each point on.
    sparse = {at: float(at) for at in (7, 14, 21, 28, 35, 36, 37, 38, 39, 40)}
    assert list(kept.thinned(sparse)) == [7, 14, 21, 28, 35, 36, 40]
    for curve in (every, sparse):
        once = kept.thinned(curve)
        assert kept.thinned(once) == once and all(curve[at] == v for at, v in once.items())


def test_five_hundred_runs_stay_small() -> None:
    curve = {at: 88.8 for at in range(1, 61)}
    figures = {"mean_last5": 88.333333, "best_accuracy": 89.0625, "worst10": 71.666667}
    long = score("heur_fedamp", method="heur_fedamp", scenario="label_groups", curve=curve)
    long = dataclasses.replace(long, figures=figures, sent=12_345_678_901, trained=5123.4)
    text = kept.text([dataclasses.replace(long, seed=k) for k in range(500)])
    assert len(text) / 500 < 220 and len(text) < 110_000


GOOD = kept.text([score("a", curve={1: 50.0}), score("b", curve={1: 60.0})])
DAMAGE: list[tuple[str, Callable[[str], str], str]] = [
    ("empty", lambda text: "", "is empty"),
    ("cut in a number", lambda text: text[:-3], "its last line is cut short"),
    ("cut line", lambda text: text[:-20] + "\n", "line 3: has 15 of 16 columns"),
    ("a line more", lambda text: text + "\n", "line 4: has 0 of 16 columns"),
    ("open quotes", lambda text: text.replace("\ns,b", '\ns,"b'), "line 3: unexpected end of data"),
    ("unknown column", lambda text: text.replace("at1", "att"), "line 1: att: unknown column; valid are sc"),
    ("round 0", lambda text: text.replace("at1", "at0"), "line 1: at0: unknown column"),
    ("missing column", lambda text: text.replace("worst10", "at2"), "line 1: column worst10 is missing"),
    ("twice", lambda text: text.replace("at1", "seed"), "line 1: column seed is there twice"),
    ("no number", lambda text: text.replace("71.0", "7l.0"), "line 2: best_accuracy = 7l.0: valid is a nu"),
    ("above 100", lambda text: text.replace("71.0", "710"), "line 2: best_accuracy = 710: valid is a number"),
    ("below 0", lambda text: text.replace("71.0", "-1"), "line 2: best_accuracy = -1: valid is a number"),
    ("infinite", lambda text: text.replace("0.5000", "inf"), "line 2: round_seconds = inf: valid is"),
    ("seed", lambda text: text.replace(",0,", ",0.5,"), "line 2: seed = 0.5: valid is a whole number >= 0"),
    ("trial", lambda text: text.replace(",,", ",-1,"), "line 2: trial = -1: valid is a whole number >= 0"),
    ("bytes", lambda text: text.replace(",7,", ",nan,"), "line 2: bytes_sent = nan: valid is a whole number"),
    ("one nan", lambda text: text.replace("71.0", "nan"), "line 2: some figures are nan"),
    ("digest", lambda text: text.replace(SOME, SOME[:-1]), "line 2: digest = 00000-11111-22222-33333-4444: "),
    ("no digest", lambda text: text.replace(SOME, ""), "line 2: digest = : valid is what compare writes"),
    ("curve", lambda text: text.replace("60.0", "x"), "line 3: at1 = x: valid is a number from 0 to 100"),
    ("duplicate", lambda text: text.replace("\ns,b", "\ns,a"), "line 3: the same run as in line 2"),
]  # fmt: skip


@pytest.mark.parametrize(("how", "told"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_a_damaged_table_is_told_in_one_line(tmp_path: Path, how: Callable[[str], str], told: str) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(how(GOOD))
    assert path.read_text() != GOOD
    with pytest.raises(UserError) as caught:
        kept.read(path)
    assert str(caught.value).startswith(f"{path}: {told}") and "\n" not in str(caught.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\n")
    old = Path(__file__).resolve().parent.parent / "docs" / "results" / "quick.csv"
    if "digest" in old.read_text().partition("\n")[0]:  # replaced meanwhile
        old = tmp_path / "old.csv"
        old.write_text(f"{HEAD.partition(',train_seconds')[0]}\n")
    for path, told in (
        (tmp_path / "a.csv", "cannot be read"),
        (tmp_path, "cannot be read"),
        (old, "was written before scores.csv had a digest"),
    ):
        with pytest.raises(UserError) as caught:
            kept.read(path)
        assert str(caught.value).startswith(f"{path}: {told}") and "\n" not in str(caught.value)


# ---- which rows hold


MATRIX = """
seeds: [0, 1]
scenarios: {s: , t: {data: {labels: iid}}}
methods: {a: {method: {name: ditto}}, fedavg: {local: {lr: 0.5}}}
"""
GRID = """
keys: {data: {validation: 0.25}}
scenarios: {s: }
trials: %d
grid: {mine: {method: {name: ditto, lam: %s}}}
"""


def cells(folder: Path, text: str) -> list[matrix.Cell]:
    (folder / "my.yaml").write_text(text)
    return matrix.read(str(folder / "my.yaml"), {}, []).cells


def sorted_by(found: list[matrix.Cell], *rows: Score) -> known.Known:
    return known.sort(rows, found, known.digests(found))


def row(cell: matrix.Cell, **keys: Any) -> Score:
    told = {"scenario": cell.scenario, "trial": cell.trial, "digest": digest.of(cell.config), **keys}
    return score(cell.label, **{"seed": cell.seed, **told})


def test_rows_of_the_same_configuration_hold(tmp_path: Path) -> None:
    found = cells(tmp_path, MATRIX)
    sorted_ = sorted_by(found, *map(row, found))
    assert list(sorted_.scores) == [cell.folder for cell in found]
    assert {s.method for s in sorted_.scores.values()} == {"ditto", "fedavg"}, "as the comparison says"
    assert (sorted_.beside, sorted_.changed, sorted_.left_out) == ({}, {}, [])


def test_whether_a_method_is_listed_apart_comes_from_its_options(tmp_path: Path) -> None:
    """As they are now, of seeds beside, too: a reason may have been put otherwise, or be a new one."""
    before = MATRIX.partition("methods:")[0]
    methods = "{fedavg: , same: {method: {name: fedavg}}, c: {method: {name: fedavg, prior: 1.0}}}"
    found = cells(tmp_path, f"{before}methods: {methods}")
    rows = [row(cell, apart=then) for cell, then in zip(found, ["put otherwise", ""] * len(found))]
    sorted_ = sorted_by(found, *rows, dataclasses.replace(rows[-1], seed=7))
    told = {s.label: s.apart for s in [*sorted_.beside.values(), *sorted_.scores.values()]}
    assert told == {"fedavg": "", "same": "", "c": fedavg.CONTROL}
    assert {s.apart for s in sorted_.beside.values()} == {fedavg.CONTROL}


def test_other_rows_are_told_apart(tmp_path: Path) -> None:
    before = {cell.folder: row(cell) for cell in cells(tmp_path, MATRIX)}
    seed7 = dataclasses.replace(before["t/a/seed0"], seed=7)
    text = MATRIX.replace("lr: 0.5", "lr: 0.25").replace("s: , ", "")
    rows = [*before.values(), seed7, score("gone", scenario="t")]
    found = sorted_by(cells(tmp_path, text), *rows)
    assert list(found.scores) == ["t/a/seed0", "t/a/seed1"]
    assert list(found.beside) == ["t/a/seed7"] and found.beside["t/a/seed7"].seed == 7
    assert found.changed == {"t/fedavg/seed0": "local", "t/fedavg/seed1": "local"}
    assert [(s.scenario, s.label) for s in found.left_out] == [
        *[("s", "a"), ("s", "fedavg")] * 2, ("t", "fedavg"), ("t", "fedavg"), ("t", "gone")
    ]  # fmt: skip


def test_a_trial_is_known_by_its_keys_and_not_by_its_number(tmp_path: Path) -> None:
    """A value put before the others moves all numbers."""
    rows = [row(cell, value=60.0 + cell.trial) for cell in cells(tmp_path, GRID % (2, "[0.5, 1]"))]
    found = sorted_by(cells(tmp_path, GRID % (3, "[0.2, 0.5, 1]")), *rows)
    assert {k: (s.trial, s.figures["mean_last5"]) for k, s in found.scores.items()} == {
        "s/mine-01/seed0": (1, 60.0),
        "s/mine-02/seed0": (2, 61.0),
    }
    assert (found.changed, found.left_out) == ({}, [])
