"""The table of ``make bench``, from figures written by hand."""

from __future__ import annotations

import sys

from running import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from report import markdown  # noqa: E402
from summary import COLUMNS, rows, spent  # noqa: E402

ROUND = {"seconds": 2.0, "plain": 8.0, "ratio": 0.24, "sgemm_gflops": 100.0}
FOUND = {
    "rounds": {"W1": ROUND, "W2": {**ROUND, "seconds": 0.05, "plain": 0.2, "ratio": 0.25}},
    "exchange": {
        "3 ranks": {"cnn sum": {"seconds": 0.04, "memcpy": 0.01}},
        "sgemm_gflops": {"3 ranks": 90.0},
    },
    "server": {"cnn, 32 clients": {"mix": 0.03, "aggregate": 0.05, "sgemm": 0.08, "sgemm again": 0.1}},
}


def test_ratios_are_to_what_was_measured_beside_and_to_a_plain_round() -> None:
    w1, w2, message, server = rows(FOUND)
    assert w1[4:] == (0.24, 100.0, "25 %"), "of a round in turns: the median of the turns' ratios"
    assert w2[4:] == (0.25, 100.0, ""), "another model: no part of a round of W1"
    assert message == ("3 ranks, cnn sum", "40 ms", "copying it", "10 ms", 4.0, 90.0, "0.5 %")
    assert server[4:] == (1.0, "", "1 %")


def test_a_missing_part_is_left_out() -> None:
    assert not list(rows({}))
    (message,) = rows({"exchange": FOUND["exchange"]})
    assert message[-1] == "", "no plain round was measured"


def test_engines_that_were_not_there_have_no_row() -> None:
    step = {"plain": 6e-3, "engine": 5e-3, "compiled": 1.5e-3}
    (row,) = rows({"steps": {"cnn by 10": step}})
    assert row[:5] == ("a step, cnn by 10, compiled", "1.5 ms", "plain PyTorch", "6 ms", 0.25)
    assert not list(rows({"steps": {"resnet8 by 10": {"plain": 6e-3, "engine": 5e-3}}}))


def test_units_and_markdown() -> None:
    assert [spent(s) for s in (1234.6, 22.46, 0.0565, 5e-5)] == ["1,235 s", "22.5 s", "56.5 ms", "50 us"]
    lines = markdown(COLUMNS, rows(FOUND)).splitlines()
    assert len(lines) == 6 and {line.count("|") for line in lines} == {len(COLUMNS) + 1}
