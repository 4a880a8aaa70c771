"""``benchmarks/equal_bytes.py``: what a client moves, by hand, and the round that so many bytes allow."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from running import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from equal_bytes import main, moved, reached  # noqa: E402

from amn_mpi import kept, known, matrix  # noqa: E402
from amn_mpi.methods.fedavg import CONTROL  # noqa: E402
from amn_mpi.scores import FIGURES, Score  # noqa: E402

P = 6 * 26 + 16 * 151 + 120 * 257 + 84 * 121 + 10 * 85  # LeNet-5 on 28 x 28: two convolutions, three layers
SUITE = matrix.read("standard_fashion_mnist", {}, ())
CONFIGS = {cell.label: cell.config for cell in SUITE.cells}
DIGESTS = known.digests(SUITE.cells)
NAN = float("nan")


def score(label: str, scenario: str, curve: dict[int, float], seed: int = 0, last: float = 50.0) -> Score:
    figures, digest = dict.fromkeys(FIGURES, last), DIGESTS[scenario, label, -1]
    return Score(scenario, label, seed, label, figures, ranks=1, digest=digest, curve=curve)


@pytest.mark.parametrize(
    "label, each",
    [
        ("local", 0),
        ("fedavg", 2 * P),
        ("scaffold", 4 * P),
        ("ifca", 5 * P),
        ("fedper", 2 * (P - 84 * 10 - 10)),
        ("fedfomo", (CONFIGS["fedfomo"].method.models + 1) * P),
    ],
)
def test_rounds_that_are_alike(label: str, each: int) -> None:
    spent = moved(CONFIGS[label])
    others = spent - 4 * each * np.arange(1, 61)  # single numbers of 64 bits, fewer than ten a round
    assert spent.shape == (60,) and (others >= 0).all() and (others <= 8 * 10 * np.arange(1, 61)).all()


def test_amn_moves_gradients_while_it_learns() -> None:
    learning = (np.arange(1, 61) > 5) & (np.arange(1, 61) <= 30)
    told = 5 * 512 + 2  # sketches of five layers; how far the steps reach, in 64 bits
    by_hand = np.cumsum(3 * P + learning * P + told)
    assert moved(CONFIGS["amn"]).tolist() == (4 * by_hand).tolist()


def test_a_client_that_sits_a_round_out_moves_nothing() -> None:
    whole, part = CONFIGS["fedavg"], replace(CONFIGS["fedavg"], cohort=0.25)
    assert moved(part).tolist() == (moved(whole) / 4).tolist()


def test_the_last_kept_round_that_is_allowed() -> None:
    run = score("amn", "iid", {1: 10.0, 5: 20.0, 10: 30.0})
    assert [reached(run, rounds) for rounds in (1, 4, 5, 9, 60)] == [10, 10, 20, 20, 30]


def test_table(tmp_path, capsys, monkeypatch) -> None:
    scenarios = list(dict.fromkeys(cell.scenario for cell in SUITE.cells))
    runs = [score("fedavg", where, {5: 60.0, 60: 80.0}) for where in scenarios]
    runs += [score("amn", where, {20: 92.0 if where == "iid" else 85.0, 60: 90.0}) for where in scenarios]
    runs += [score("ditto", "iid", {60: 99.0})]  # one scenario of seven
    runs += [score("apfl", where, {60: 99.0}, seed=10) for where in scenarios]
    runs += [score("local", where, {5: 70.0, 60: 75.0}) for where in scenarios]
    runs += [score("fedavg_prior", where, {60: 78.0}) for where in scenarios]
    runs = [replace(one, apart=CONTROL) if one.label == "fedavg_prior" else one for one in runs]
    runs += [score("fedfomo", where, {60: 99.0}) for where in scenarios]
    runs += [score("fedper", where, {}) for where in scenarios]
    for where in scenarios:  # as they are: a diverged run has no curve
        runs.append(score("fedala", where, {60: 70.0}))
        wild = where == "quantity"
        runs.append(score("fedala", where, {} if wild else {60: 76.0}, 1, NAN if wild else 50.0))
    runs += [replace(one, seed=1) for one in runs if one.label not in ("apfl", "fedala")]
    said = table(tmp_path, capsys, monkeypatch, runs, "--seeds", "0,1")
    head, _, *lines = said.strip().splitlines()
    assert head == "At no more than 21.3 MB a client, which fedavg moves in all; seeds 0,1:"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:7]]
    assert [(row[0], row[2], row[3], *row[-2:]) for row in cells] == [
        ("amn", "31", "20", "92.0", "85.0"),
        ("fedavg", "60", "60", "80.0", "80.0"),
        (f"fedavg_prior ({CONTROL})", "60", "60", "78.0", "78.0"),
        ("local", "60", "60", "75.0", "75.0"),
        ("fedala", "60", "60", "73.0", "72.5*"),
    ]
    assert cells[4][6] == "70.0*" and lines[-1] == "* without runs that diverged"
    told = dict(line.split(": ") for line in lines[8:-1])
    assert (told["ditto"], told["apfl"]) == ("2 of 14 runs", "0 of 14 runs")
    assert told["fedper"] == "14 of 14 runs have no kept rounds"
    assert told["fedfomo"].startswith("the bytes are those of ") and "amn" not in told
    for words, why in (
        (("--of", "foo"), "--of foo: valid are amn, local, fedavg"),
        (("--seeds", "x"), "argument --seeds: invalid"),
    ):
        with pytest.raises(SystemExit):
            table(tmp_path, capsys, monkeypatch, runs, *words)
        assert why in capsys.readouterr().err


def table(tmp_path, capsys, monkeypatch, runs: list[Score], *words: str) -> str:
    (tmp_path / "scores.csv").write_text(kept.text(runs))
    line = ["equal", "standard_fashion_mnist", "--scores", f"{tmp_path}/scores.csv", *words]
    monkeypatch.setattr(sys, "argv", line)
    main()
    return capsys.readouterr().out
