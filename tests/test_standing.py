"""``benchmarks/standing.py``: leads, and the baselines that other seeds choose, by hand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
from running import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from standing import averages, choices, main, rivals  # noqa: E402

from amn_mpi import kept, known, matrix  # noqa: E402
from amn_mpi.methods.fedavg import CONTROL  # noqa: E402
from amn_mpi.scores import Board, Score  # noqa: E402
from amn_mpi.tables import number, signed  # noqa: E402

SUITE = matrix.read("standard_cifar10", {}, ())
DIGESTS = known.digests(SUITE.cells)
TOLD = "is told the number of groups"
NAN = float("nan")


def runs(label: str, scenario: str, means: dict[int, float], apart: str = "") -> list[Score]:
    """Worst tenths are 10 below the means, FedALA's 20."""
    lower = 20 if label == "fedala" else 10
    return [
        Score(
            scenario, label, seed, label,
            {"mean_last5": mean, "best_accuracy": mean, "worst10": mean - lower},
            ranks=1, digest=DIGESTS[scenario, label, -1], apart=apart,
        )
        for seed, mean in means.items()
    ]  # fmt: skip


# Two seeds, so Student's t is 12.706 and an interval's half width 12.706 * |difference of the two| / 2.
SCORES = [
    *runs("amn", "label_skew", {0: 90.0, 10: 80.0, 11: 80.2}),
    *runs("fedala", "label_skew", {0: 89.0, 10: 79.0, 11: 79.0}),
    *runs("ditto", "label_skew", {0: 88.0, 10: 85.0, 11: 85.0}),
    *runs("fedavg_prior", "label_skew", {0: 99.0, 10: 99.0, 11: 99.0}, CONTROL),
    *runs("amn", "rotation", {0: 70.0, 10: 70.0, 11: 70.0}),
    *runs("fedala", "rotation", {0: 71.0, 10: 72.0, 11: 72.0}),
    *runs("ditto", "rotation", {0: 70.0, 10: 70.0, 11: 70.0}),
    *runs("ifca", "rotation", {0: 73.0, 10: 70.2, 11: 70.4}, TOLD),
]


def board(*labels: str) -> Board:
    return Board([s for s in SCORES if s.seed in (10, 11) and s.label in labels], "amn")


def against(scores: list[Score], chosen: Sequence[int] = (0,)) -> dict[str, tuple[str, str, float, str]]:
    found = rivals(scores, "amn", chosen, {10, 11})
    return {r.scenario: (r.label, f"{r.lead.mean:+.1f} {r.lead.half:.1f}", r.chosen, r.behind) for r in found}


def shown(found: Board) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(one.label, number(one.own), signed(one.lead), one.lost) for one in averages(found)]


def test_averages_over_the_scenarios() -> None:
    assert shown(board("amn", "fedala", "ditto")) == [
        ("ditto", "77.5 ± 0.0", "-2.5 ± 0.6", ()),  # amn 75.0 and 75.1
        ("fedala", "75.5 ± 0.0", "-0.5 ± 0.6", ()),
        ("amn", "75.0 ± 0.1", "+0.0 ± 0.0", ()),
    ]


def test_other_seeds_choose_the_baseline() -> None:
    assert against(SCORES) == {
        "label_skew": ("fedala", "+1.1 1.3", 89.0, "no"),  # not ditto
        "rotation": ("ifca", "-0.3 1.3", 73.0, "no"),
    }
    worst = [r.worst.mean for r in rivals(SCORES, "amn", {0}, {10, 11})]
    assert worst == [pytest.approx(11.1), pytest.approx(-0.3)]


def test_behind_is_the_whole_interval() -> None:
    without = [s for s in SCORES if (s.label, s.scenario) != ("ifca", "rotation")]
    assert against(without)["rotation"] == ("fedala", "-2.0 0.0", 71.0, "yes")
    (first, second) = rivals(without, "amn", {0}, {10})
    assert (first.behind, second.behind) == ("-", "-"), "one seed has no interval"


def test_a_baseline_is_chosen_by_all_seeds_or_not_at_all() -> None:
    more = [
        *runs("amn", "label_skew", {1: 80.0}), *runs("fedala", "label_skew", {1: 70.0}),
        *runs("ditto", "label_skew", {1: 80.0}), *runs("local", "label_skew", {1: 99.0, 10: 1.0, 11: 1.0}),
    ]  # fmt: skip
    assert against([*SCORES, *more], (0, 1)) == {"label_skew": ("ditto", "-4.9 1.3", 84.0, "yes")}


def test_a_run_that_diverged_counts_as_nothing_in_the_choice() -> None:
    more = [
        *runs("amn", "iid", {0: 1.0, 10: 60.0, 11: 60.0}),
        *runs("ditto", "iid", {0: 5.0, 10: 50.0, 11: 70.0}),
        *runs("fedala", "iid", {0: NAN, 10: 70.0, 11: 70.0}),
    ]
    assert against(more)["iid"][0] == "ditto"


def test_a_lead_is_over_runs_that_have_not_diverged() -> None:
    """A diverged run of AMN's own stays one."""
    more = [
        *runs("amn", "iid", {0: 1.0, 10: 60.0, 11: 60.0, 12: 63.0}),
        *runs("ditto", "iid", {0: 5.0, 10: 50.0, 11: NAN, 12: 53.2}),
    ]
    (found,) = rivals(more, "amn", {0}, {10, 11, 12})
    assert (found.label, found.lead.diverged, found.behind) == ("ditto", 1, "no")
    # 10 and 9.8: half width 12.706 * 0.2 / 2
    assert (found.lead.mean, found.lead.half, found.worst.mean) == pytest.approx((9.9, 1.2706, 9.9))
    (found,) = rivals(more, "amn", {0}, {11})
    assert found.behind == "-" and found.worst.mean != found.worst.mean
    own = [*runs("amn", "iid", {10: NAN, 11: 60.0}), *runs("ditto", "iid", {0: 5.0, 10: 50.0, 11: 50.0})]
    (found,) = rivals(own, "amn", {0}, {10, 11})
    assert found.lead.diverged == 1 and found.behind == "-"


def test_a_scenario_in_which_a_baseline_diverged_is_left_out_for_all_seeds() -> None:
    """Of its average and of AMN's in the lead over it; the other baselines keep all scenarios."""
    wild = [replace(s, figures=dict.fromkeys(s.figures, NAN)) if (s.label, s.scenario, s.seed) ==
            ("ditto", "label_skew", 11) else s for s in SCORES]  # fmt: skip
    some = [s for s in wild if s.seed in (10, 11) and s.label in ("amn", "fedala", "ditto")]
    assert shown(Board(some, "amn")) == [
        ("fedala", "75.5 ± 0.0", "-0.5 ± 0.6", ()),
        ("ditto", "70.0 ± 0.0", "+0.0 ± 0.0", ("label_skew",)),  # with rotation alone
        ("amn", "75.0 ± 0.1", "+0.0 ± 0.0", ()),
    ]
    nowhere = [s for s in some if (s.label, s.scenario) != ("ditto", "rotation")]
    nowhere += runs("ditto", "rotation", {10: NAN, 11: 70.0})
    assert shown(Board(nowhere, "amn"))[-1] == ("ditto", "-", "-", ("label_skew", "rotation"))


def test_who_could_be_chosen() -> None:
    more = [*SCORES, *runs("local", "iid", {0: NAN})]
    assert choices(more, "amn", ["label_skew", "rotation", "iid", "quantity"], {0}) == {
        ("fedala", "ditto"): ["label_skew"], ("fedala", "ditto", "ifca"): ["rotation"],
        ("local",): ["iid"], (): ["quantity"],
    }  # fmt: skip
    assert choices(more, "amn", ["label_skew"], {0, 1}) == {(): ["label_skew"]}


def command(tmp_path, monkeypatch, scores: list[Score], *words: str) -> None:
    file = tmp_path / "scores.csv"
    file.write_text(kept.text(scores))
    line = ["standing", "standard_cifar10", "--scores", str(file), "--chosen", "0", *words]
    monkeypatch.setattr(sys, "argv", line)
    main()


def test_prints_both_tables(tmp_path, capsys, monkeypatch) -> None:
    others = {s.scenario for s in SCORES}
    control = ",".join(
        dict.fromkeys(c.scenario for c in SUITE.cells if c.scenario not in others or c.scenario == "rotation")
    )
    words = ("--judged", "10,11", "--control", control)
    stale = [
        replace(s, digest="0a1b2-3c4d5-6e7f8-90a1b-2c3d4") for s in runs("apfl", "label_skew", {10: 20.0})
    ]
    command(tmp_path, monkeypatch, [*SCORES, *stale], *words)
    said = capsys.readouterr()
    out = said.out
    assert out.startswith("Average over label_skew; seeds 10,11:")
    assert f"| fedavg_prior ({CONTROL}) | 99.0 ± 0.0 | -18.9 ± 1.3 |  |" in out
    assert "The best baseline is ditto, amn is ahead of it by -4.9 ± 1.3." in out
    assert "\nifca: 0 of 2 runs\n" in out and "\napfl: 0 of 2 runs\n" in out
    assert "1 runs with other keys are left out" in said.err
    assert "| rotation | ifca | 73.0 | -0.3 ± 1.3 | -0.3 ± 1.3 | no |" in out
    assert "Worst tenth of the clients ahead in 1 of 2 scenarios; there are 7.\n" in out
    assert "\nRuns are missing in three_classes, quantity, permutation, label_groups, iid.\n" in out
    assert "\nChosen of fedala, ditto, ifca in rotation.\n" in out
    assert "\nChosen of none in three_classes, quantity, permutation, label_groups, iid.\n" in out


def test_prints_what_diverged(tmp_path, capsys, monkeypatch) -> None:
    """A baseline that diverged once competes with the rest of its runs."""
    words = ("--judged", "10,11", "--control", "three_classes,quantity,permutation,label_groups,iid")
    lost = [s for s in SCORES if (s.label, s.scenario, s.seed) != ("ditto", "label_skew", 11)]
    lost += runs("ditto", "label_skew", {11: NAN})
    command(tmp_path, monkeypatch, lost, *words)
    out = capsys.readouterr().out
    assert "| ditto | 70.0 ± 0.0 | +0.0 ± 0.0 | label_skew |" in out
    assert "The best baseline is fedala, amn is ahead of it by -0.5 ± 0.6." in out
    lost = [replace(s, figures=dict.fromkeys(s.figures, NAN)) if s.label == "fedala" and s.seed == 11 else s
            for s in SCORES]  # fmt: skip
    command(tmp_path, monkeypatch, lost, *words)
    told = "| label_skew | fedala | 89.0 | +1.0 (1 of 2 diverged) | +11.0 (1 of 2 diverged) | - |"
    assert told in capsys.readouterr().out
    own = [replace(s, figures=dict.fromkeys(s.figures, NAN)) if s.label == "amn" and s.seed == 11 else s
           for s in SCORES]  # fmt: skip
    with pytest.raises(SystemExit):
        command(tmp_path, monkeypatch, own, *words)
    assert "amn on seeds 10,11: a run diverged" in capsys.readouterr().err


def test_refusals(tmp_path, capsys, monkeypatch) -> None:
    every = "label_skew,three_classes,quantity,rotation,permutation,label_groups,iid"
    for words, told in (
        (("--judged", "12", "--control", every.replace("label_skew,", "")), "amn on seeds 12: 0 of 1 runs"),
        (("--judged", "10,11"), "amn on seeds 10,11: 4 of 12 runs"),
        (("--judged", ""), "argument --judged: invalid"),
        (("--control", "idd"), "--control idd: valid are label_skew, three_classes"),
        (("--control", every), "leaves no scenario for the average"),
    ):
        with pytest.raises(SystemExit):
            command(tmp_path, monkeypatch, SCORES, *words)
        assert told in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["standing", "standard_cifar10_tune"])
    with pytest.raises(SystemExit):
        main()
    assert "standard_cifar10_tune is a tuning" in capsys.readouterr().err
