"""``benchmarks/standing.py``: leads, and the baselines that other seeds choose, by hand."""

from __future__ import annotations

import sys

import pytest
from running import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from standing import averages, main, rivals  # noqa: E402

from amn_mpi import kept  # noqa: E402
from amn_mpi.methods.fedavg import CONTROL  # noqa: E402
from amn_mpi.scores import Board, Score  # noqa: E402

TOLD = "is told the number of groups"


def runs(label: str, scenario: str, means: dict[int, float], apart: str = "") -> list[Score]:
    """Worst tenths are 10 below the means, FedALA's 20."""
    lower = 20 if label == "fedala" else 10
    return [
        Score(
            scenario, label, seed, label,
            {"mean_last5": mean, "best_accuracy": mean, "worst10": mean - lower},
            ranks=1, digest="0a1b2-3c4d5-6e7f8-90a1b-2c3d4", apart=apart,
        )
        for seed, mean in means.items()
    ]  # fmt: skip


# Two seeds, so Student's t is 12.706 and an interval's half width 12.706 * |difference of the two| / 2.
SCORES = [
    *runs("amn", "label_skew", {0: 90.0, 10: 80.0, 11: 80.2}),
    *runs("fedala", "label_skew", {0: 89.0, 10: 79.0, 11: 79.0}),
    *runs("ditto", "label_skew", {0: 88.0, 10: 85.0, 11: 85.0}),
    *runs("controlled", "label_skew", {0: 99.0, 10: 99.0, 11: 99.0}, CONTROL),
    *runs("amn", "rotation", {0: 70.0, 10: 70.0, 11: 70.0}),
    *runs("fedala", "rotation", {0: 71.0, 10: 72.0, 11: 72.0}),
    *runs("ditto", "rotation", {0: 70.0, 10: 70.0, 11: 70.0}),
    *runs("ifca", "rotation", {0: 73.0, 10: 70.2, 11: 70.4}, TOLD),
]


def board(seeds: set[int], scenario: str = "") -> Board:
    return Board([s for s in SCORES if s.seed in seeds and scenario in ("", s.scenario)], "amn")


def test_averages_over_the_scenarios_that_a_method_has_run() -> None:
    assert averages(board({10, 11})) == [
        ("ditto", "77.5 ± 0.0", "-2.5 ± 0.6"),  # amn 75.0 and 75.1
        ("fedala", "75.5 ± 0.0", "-0.5 ± 0.6"),
        ("amn", "75.0 ± 0.1", ""),
    ]


def test_other_seeds_choose_the_baseline() -> None:
    first, second = rivals(board({0}), board({10, 11}))
    assert (first.label, first.chosen, first.lead) == ("fedala", 89.0, "+1.1 ± 1.3")  # not ditto
    assert first.worst == pytest.approx(11.1) and not first.behind
    assert (second.label, second.chosen, second.lead) == ("ifca", 73.0, "-0.3 ± 1.3")
    assert second.worst == pytest.approx(-0.3) and not second.behind


def test_behind_is_the_whole_interval() -> None:
    without = Board([s for s in SCORES if s.seed == 0 and s.label != "ifca"], "amn")
    (rival,) = rivals(without, board({10, 11}, "rotation"))
    assert (rival.label, rival.lead, rival.behind) == ("fedala", "-2.0 ± 0.0", True)


def test_prints_both_tables(tmp_path, capsys, monkeypatch) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text(kept.text(SCORES))
    command = ["standing", "standard_cifar10", "--scores", str(scores), "--chosen", "0", "--judged", "10,11"]
    monkeypatch.setattr(sys, "argv", [*command, "--control", "rotation"])
    main()
    out = capsys.readouterr().out
    assert out.startswith("Average over label_skew; seeds 10,11:")
    assert f"| controlled ({CONTROL}) | 99.0 ± 0.0 | -18.9 ± 1.3 |" in out
    assert "| rotation | ifca | 73.0 | -0.3 ± 1.3 | -0.3 | no |" in out
    assert out.endswith("Worst tenth of the clients ahead in 1 of 2 scenarios.\n")
    monkeypatch.setattr(sys, "argv", [*command[:-1], "12"])
    with pytest.raises(SystemExit):
        main()
    assert "--judged 12: no run has one of these seeds" in capsys.readouterr().err
