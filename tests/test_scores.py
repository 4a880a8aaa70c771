"""What finished runs amount to, by hand, and the tables made of it."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from amn_mpi import scores, tables
from amn_mpi.config import Config
from amn_mpi.scores import Board, Score, best_trials, half_width, of_result, ranks, why_apart

NAN = math.nan
NAMES = {"fedbn": "fedbn", "ifca": "ifca"}
SPECIAL = r"a&b%c#d_e{f}g$h~i\j"


def score(
    label: str, seed: int, value: float, scenario: str = "s", method: str = "local", trial: int = -1
) -> Score:
    """A run whose three figures differ, so that a mix-up shows."""
    figures = {"mean_last5": value, "best_accuracy": value + 1, "worst10": value - 1}
    method = NAMES.get(label, method)
    return Score(scenario, label, seed, method, figures, 0.5, 7, trial, apart=why_apart(method, {}))


def board(*rows: tuple, reference: str = "a") -> Board:
    return Board([score(*row) for row in rows], reference)


# ---- Student's t


def t_cdf(x: float, freedom: int) -> float:
    """By Simpson's rule over the density."""
    grid = np.linspace(0, x, 20001)
    norm = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    density = norm * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
    weights = np.r_[1, np.tile([4, 2], 9999), 4, 1]
    return 0.5 + float((weights * density).sum()) * (grid[1] - grid[0]) / 3


def test_the_table_of_t_holds_the_975th_thousandth() -> None:
    assert len(scores.T95) == 30
    assert [scores.T95[k - 1] for k in (1, 2, 4, 9, 30)] == [12.706, 4.303, 2.776, 2.262, 2.042]
    for freedom, t in enumerate(scores.T95, 1):
        assert t_cdf(t - 0.0006, freedom) < 0.975 < t_cdf(t + 0.0006, freedom), freedom
    for freedom in (31, 60, 200):
        t = scores.t95(freedom)
        assert t_cdf(t - 0.001, freedom) < 0.975 < t_cdf(t + 0.001, freedom), freedom


def test_half_widths_by_hand() -> None:
    assert half_width([1.0, 3.0]) == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2))
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert half_width([5.0, 5.0, 5.0]) == 0
    assert math.isnan(half_width([5.0])) and math.isnan(half_width([]))
    many = list(map(float, range(31)))
    assert half_width(many) == pytest.approx(2.042 * statistics.stdev(many) / math.sqrt(31))
    more = list(map(float, range(500)))
    assert half_width(more) == pytest.approx(1.9647 * statistics.stdev(more) / math.sqrt(500), rel=1e-4)


# ---- means, differences, ranks


def test_mean_and_sample_deviation() -> None:
    found = board(("a", 0, 80.0), ("a", 1, 84.0), ("a", 2, 85.0))
    summary = found.summary(found.values("mean_last5", "s", "a"))
    assert (summary.mean, summary.std, summary.seeds) == (83.0, pytest.approx(math.sqrt(7)), 3)
    assert found.summary(found.values("worst10", "s", "a")).mean == 82.0
    assert math.isnan(found.summary({4: 80.0}).std)
    nothing = found.summary({})
    assert math.isnan(nothing.mean) and math.isnan(nothing.std) and nothing.seeds == 0


def test_differences_are_paired_by_seed() -> None:
    """Seeds that only one side has do not count; unpaired means would say -13 here."""
    found = board(
        ("a", 0, 50.0), ("a", 1, 90.0), ("a", 2, 70.0), ("b", 2, 72.0), ("b", 0, 51.0), ("b", 7, 1.0)
    )  # fmt: skip
    own, other = (found.values("mean_last5", "s", who) for who in "ba")
    difference = found.difference(own, other)
    assert difference.mean == pytest.approx(1.5)
    assert difference.half == pytest.approx(12.706 * statistics.stdev([1, 2]) / math.sqrt(2))
    one = found.difference({0: 5.0}, {0: 3.0, 1: 9.0})
    assert one.mean == 2.0 and math.isnan(one.half)
    assert math.isnan(found.difference({0: 5.0}, {1: 3.0}).mean)
    assert math.isnan(found.difference({}, {}).mean)


def test_averages_over_scenarios_use_the_seeds_that_all_have() -> None:
    found = board(
        ("a", 0, 50.0, "s"), ("a", 1, 60.0, "s"), ("a", 1, 80.0, "t"), ("a", 2, 90.0, "t"), ("b", 3, 1.0, "t")
    )  # fmt: skip
    assert found.averaged("mean_last5", "a") == {1: 70.0}
    assert found.averaged("mean_last5", "b") == {}
    assert found.scenarios == ["s", "t"] and found.labels == ["a", "b"]


def test_ranks() -> None:
    assert ranks({"a": 3.0, "b": 5.0, "c": 4.0}) == {"a": 3, "b": 1, "c": 2}
    assert ranks({"a": 5.0, "b": 5.0, "c": 4.0}) == {"a": 1.5, "b": 1.5, "c": 3}
    assert ranks({"a": 4.0, "b": 4.0, "c": 4.0}) == {"a": 2, "b": 2, "c": 2}
    assert ranks({"a": NAN, "b": 0.0, "c": 1.0}) == {"a": 3, "b": 2, "c": 1}
    assert ranks({"a": NAN, "b": NAN, "c": 1.0}) == {"a": 2.5, "b": 2.5, "c": 1}
    assert ranks({}) == {}


def test_mean_ranks_leave_out_scenarios_that_a_method_lacks() -> None:
    rows = [("a", 0, 9.0, "s"), ("b", 0, 8.0, "s"), ("a", 0, 1.0, "t"), ("b", 0, 2.0, "t")]
    assert board(*rows).ranks("mean_last5") == {"a": 1.5, "b": 1.5}
    assert board(*rows, ("a", 0, 9.0, "u")).ranks("mean_last5") == {"a": 1.5, "b": 1.5}
    apart = board(*rows, ("fedbn", 0, 99.0, "s"))
    assert apart.ranks("mean_last5") == {"a": 1.5, "b": 1.5}, "FedBN counts although it is listed apart"
    lonely = board(("a", 0, 1.0, "s"), ("b", 0, 1.0, "t")).ranks("mean_last5")
    assert all(math.isnan(rank) for rank in lonely.values())


def test_a_reference_that_has_not_run_is_replaced_by_the_first() -> None:
    assert board(("b", 0, 1.0), ("a", 0, 1.0), reference="a").reference == "a"
    assert board(("b", 0, 1.0), ("a", 0, 1.0), reference="amn").reference == "b"


# ---- the best trials


def test_best_trials() -> None:
    """Means over scenarios and seeds; a run that diverged counts as 0 and never wins for being NaN."""
    found = [
        score("a", 0, 70.0, "s", trial=0), score("a", 0, 70.0, "t", trial=0),
        score("a", 0, 95.0, "s", trial=1), score("a", 0, NAN, "t", trial=1),
        score("a", 0, 72.0, "t", trial=2), score("a", 0, 69.0, "s", trial=2),
        score("b", 0, NAN, "s", trial=0), score("b", 0, 3.0, "s", trial=1),
    ]  # fmt: skip
    assert best_trials(found) == {"a": 2, "b": 1}
    assert best_trials(reversed(found)) == {"a": 2, "b": 1}


def test_the_first_of_equal_trials_wins() -> None:
    found = [score("a", 0, value, trial=k) for k, value in enumerate([60.0, 70.0, 70.0, NAN])]
    assert best_trials(found) == {"a": 1} == best_trials(reversed(found))
    assert best_trials([score("a", 0, NAN, trial=k) for k in (2, 1, 0)]) == {"a": 0}


# ---- from result.json


def result(**data: object) -> dict[str, Any]:
    config = Config().as_dict()
    config["data"].update(data)
    config["method"] = {"name": "fedavg"}
    figures = {"mean_last5": 50.0, "best_accuracy": 51.5, "worst10": 12.5}
    return {
        "method": "fedavg", "seed": 3, "config": config, "round_seconds": 0.25,
        "bytes_sent": {"scatter": 5, "gather": 8, "checkpoint": 100}, **figures,
        "ranks": 3, "seconds": {"mean": {"train": 1.5}}, "versions": {"amn_mpi": "0.0.7"},
    }  # fmt: skip


def test_the_score_of_a_result() -> None:
    found = of_result(result())
    assert (found.label, found.method, found.seed, found.trial) == ("fedavg", "fedavg", 3, -1)
    assert found.figures == {"mean_last5": 50.0, "best_accuracy": 51.5, "worst10": 12.5}
    assert (found.seconds, found.sent) == (0.25, 13), "checkpoints go by the clock"
    assert (found.trained, found.ranks, found.version) == (4.5, 3, "0.0.7")
    assert found.scenario == "digits, Dirichlet 0.5, permute 2, mlp, 32 clients, 40 rounds"
    cell = of_result(result(), "rotation", "mine", 4)
    assert (cell.scenario, cell.label, cell.method, cell.trial) == ("rotation", "mine", "fedavg", 4)
    whole = result()
    diverged = {key: whole[key] for key in ("method", "seed", "config")}
    assert all(math.isnan(v) for v in of_result({**diverged, "diverged": "round 1"}).figures.values())


def test_scenarios_of_runs_that_belong_to_no_matrix() -> None:
    def name(**data: object) -> str:
        return scores.scenario_of(result(**data))

    assert "2 label groups" in name(labels="groups", label_groups=2)
    assert "5 classes, log-normal 0.5" in name(
        labels="classes", classes_per_client=5, sizes="lognormal", sigma=0.5
    )
    assert name(labels="iid", concept="none") == "digits, iid, mlp, 32 clients, 40 rounds"
    assert name(validation=0.25) != name(), "validation accuracies in one column with test accuracies"


# ---- tables


SCORES = [
    score("a", 0, 70.0, "s"), score("a", 1, 72.0, "s"), score("a", 0, 60.0, "t"), score("a", 1, 62.0, "t"),
    score("b", 0, 80.0, "s"), score("b", 1, 80.0, "s"), score("b", 0, 50.0, "t"), score("b", 1, 50.0, "t"),
    score("fedbn", 0, 99.0, "s"), score("fedbn", 1, 99.0, "s"), score("fedbn", 0, 99.0, "t"),
    score("ifca", 0, 98.0, "s"),
]  # fmt: skip


def texts(table: tables.Table) -> list[list[str]]:
    """Cells as text, the best with a star before it."""
    return [["*" * cell.best + cell.text for cell in row] for row in table.rows]


def test_accuracies_with_the_best_among_those_not_listed_apart() -> None:
    table = tables.accuracies(Board(SCORES, "a"), "mean_last5")
    assert table.columns == ["method", "s", "t", "average", "rank"]
    assert texts(table) == [
        ["a", "71.0 ± 1.4", "*61.0 ± 1.4", "*66.0 ± 1.4", "1.5"],
        ["b", "*80.0 ± 0.0", "50.0 ± 0.0", "65.0 ± 0.0", "1.5"],
        ["fedbn †", "99.0 ± 0.0", "99.0 (1 of 2 seeds)", "99.0 (1 of 2 seeds)", "-"],
        ["ifca †", "98.0 (1 of 2 seeds)", "-", "-", "-"],
    ]
    assert len(table.notes) == 2
    assert "fedbn: trains the batch-norm form" in table.notes[0] and "ifca: is told" in table.notes[1]
    assert "last five" in table.title
    assert "71.0" not in str(texts(tables.accuracies(Board(SCORES, "a"), "best_accuracy")))


def test_controls_are_listed_apart() -> None:
    """FedAvg with AMN's offsets; neither FedAvg without, nor AMN, nor what is derived from FedAvg."""

    def found(name: str, label: str, value: float, **options: object) -> Score:
        run = result()
        run["config"]["method"] = {"name": name, **options}
        return of_result({**run, "method": name, "mean_last5": value}, "s", label)

    each = [
        found("amn", "amn", 70.0, prior=1.0), found("fedavg", "old", 50.0), found("fedprox", "prox", 45.0),
        found("fedavg", "fedavg_prior", 90.0, prior=1.0), found("fedavg", "fedavg", 60.0, prior=0.0),
        found("fedavg_ft", "fedavg_ft_prior", 80.0, prior=0.5), found("fedbn", "fedbn", 40.0),
    ]  # fmt: skip
    table = tables.accuracies(Board(each, "amn"), "mean_last5")
    assert texts(table) == [
        ["amn", "*70.0", "1.0"], ["old", "50.0", "3.0"], ["prox", "45.0", "4.0"], ["fedavg", "60.0", "2.0"],
        ["fedavg_prior †", "90.0", "-"], ["fedavg_ft_prior †", "80.0", "-"], ["fedbn †", "40.0", "-"],
    ]  # fmt: skip
    told = "with AMN's class offsets: a control of this project"
    assert table.notes[:2] == [f"† fedavg_prior: {told}", f"† fedavg_ft_prior: {told}"]
    assert "batch-norm" in table.notes[2]


def test_methods_listed_apart_come_last_wherever_they_stand() -> None:
    table = tables.accuracies(Board([*SCORES[-1:], *SCORES[:1]], "a"), "mean_last5")
    assert [row[0] for row in texts(table)] == ["a", "ifca †"]
    alone = tables.accuracies(Board(SCORES[-4:], "a"), "mean_last5")
    assert [row[-1] for row in texts(alone)] == ["-", "-"]


def test_equal_means_are_both_best_and_one_method_alone_is_not() -> None:
    table = tables.accuracies(board(("a", 0, 70.0), ("b", 0, 70.0), ("c", 0, 60.0)), "mean_last5")
    assert texts(table) == [["a", "*70.0", "1.5"], ["b", "*70.0", "1.5"], ["c", "60.0", "3.0"]]
    assert texts(tables.accuracies(board(("a", 0, 70.0)), "mean_last5")) == [["a", "70.0", "1.0"]]


def test_one_seed_and_diverged_runs() -> None:
    found = board(("a", 0, 70.0), ("b", 0, NAN), ("c", 0, 40.0))
    table = tables.accuracies(found, "mean_last5")
    assert texts(table) == [["a", "*70.0", "1.0"], ["b", "diverged", "3.0"], ["c", "40.0", "2.0"]]
    assert "±" not in str(texts(table))
    assert texts(tables.differences(found)) == [["b", "diverged"], ["c", "-30.0"]]


def test_a_run_that_diverged_leaves_the_others_in_sight() -> None:
    """The mean of the rest is given, marked, and neither ranked before others nor the best."""
    rows = [("a", k, value, where) for k, value in enumerate([70.0, 71.0, 72.0]) for where in "st"]
    more = [("b", 0, 80.0, "s"), ("b", 1, NAN, "s"), ("b", 2, 84.0, "s")]
    more += [("b", seed, 74.0, "t") for seed in range(3)]
    found = board(*rows, *more)
    table = tables.accuracies(found, "mean_last5")
    assert texts(table) == [
        ["a", "71.0 ± 1.0", "71.0 ± 1.0", "71.0 ± 1.0", "1.5"],
        ["b", "82.0 ± 2.8 (1 of 3 diverged)", "*74.0 ± 0.0", "78.0 ± 1.4 (1 of 3 diverged)", "1.5"],
    ]
    half = 12.706 * 1 / math.sqrt(2) * math.sqrt(2)  # of 10 and 12
    assert texts(tables.differences(found))[0][1] == f"+11.0 ± {half:.1f} (1 of 3 diverged)"
    assert texts(tables.differences(board(*rows, *more, reference="b")))[0][1].endswith("(1 of 3 diverged)")


def test_methods_with_fewer_seeds_are_marked_and_not_ranked() -> None:
    rows = [("a", 0, 70.0, "s"), ("a", 1, 71.0, "s"), ("b", 1, 90.0, "s")]
    rows += [("a", 0, 60.0, "t"), ("b", 0, 50.0, "t")]
    table = tables.accuracies(board(*rows), "mean_last5")
    assert texts(table) == [
        ["a", "70.5 ± 0.7", "*60.0", "65.0", "1.0"],
        ["b", "90.0 (1 of 2 seeds)", "50.0", "-", "2.0"],
    ]
    assert table.notes == ["rank: over 1 of 2 scenarios, where all methods have all seeds: t"]
    both = tables.accuracies(board(*rows, ("b", 0, NAN, "s"), ("b", 2, 90.0, "s")), "mean_last5")
    assert texts(both)[1][1] == "90.0 ± 0.0 (1 of 3 diverged)"
    assert texts(both)[0][1] == "70.5 ± 0.7 (2 of 3 seeds)"
    assert texts(tables.differences(board(*rows)))[0][1:3] == ["+19.0 (1 of 2 seeds)", "-10.0"]
    assert tables.number(scores.Summary(1.0, NAN, 2, 1), 3) == "1.0 (1 of 2 diverged, 2 of 3 seeds)"


def test_differences_to_the_reference() -> None:
    table = tables.differences(Board(SCORES, "b"))
    assert table.columns == ["method", "s", "t", "average"]
    assert "to b in points" in table.title
    half = 12.706 * statistics.stdev([70 - 80, 72 - 80]) / math.sqrt(2)
    assert texts(table)[0] == ["a", f"-9.0 ± {half:.1f}", f"+11.0 ± {half:.1f}", f"+1.0 ± {half:.1f}"]
    assert texts(table)[1:] == [
        ["fedbn †", "+19.0 ± 0.0", "+49.0 (1 of 2 seeds)", "+34.0 (1 of 2 seeds)"],
        ["ifca †", "+18.0 (1 of 2 seeds)", "-", "-"],
    ]
    assert len(tables.tables(Board(SCORES, "b"))) == 4
    assert len(tables.tables(board(("a", 0, 70.0)))) == 3, "nothing to compare with"


def test_trials_of_a_tuning() -> None:
    found = [score("a", 0, value, trial=k) for k, value in enumerate([60.0, NAN, 70.0])]
    options = [{"local": {"lr": lr}, "method": {"mu": 1}} for lr in (0.1, 0.2, 0.3)]
    (table,) = tables.trials(found, {"a": options}, {"a": 2})
    assert texts(table) == [
        ["a", "local.lr: 0.1, method.mu: 1", "60.00"],
        ["a", "local.lr: 0.2, method.mu: 1", "diverged"],
        ["a", "local.lr: 0.3, method.mu: 1", "*70.00"],
    ]
    found.append(score("a", 0, 80.0, "other", trial=2))
    (table,) = tables.trials(found, {"a": [*options, {"local": {"lr": 0.4}}]}, {})
    assert [row[2] for row in texts(table)] == [
        "60.00 (1 of 2 runs)", "diverged (1 of 2 runs)", "75.00", "-"
    ]  # fmt: skip


def test_markdown() -> None:
    found = [score("a|b", 0, 70.0, "s|t"), score("c", 0, 60.0, "s|t"), score("ifca", 0, 99.0, "s|t")]
    lines = tables.markdown(tables.accuracies(Board(found, "c"), "mean_last5")).splitlines()
    assert lines[0].startswith("### test accuracy")
    assert lines[2:7] == [
        r"| method | s\|t | rank |", "|---|---|---|",
        r"| a\|b | **70.0** | 1.0 |", "| c | 60.0 | 2.0 |", "| ifca † | 99.0 | - |",
    ]  # fmt: skip
    assert lines[7] == "" and lines[8].startswith("† ifca: is told")


def structure(latex: str) -> list[int]:
    """Columns of each row of a tabular, after what would not compile has been looked for."""
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", body)
    assert columns is not None and body.count(r"\begin{tabular}") == body.count(r"\end{tabular}") == 1
    bare = re.sub(r"\\[&%#_{}$]", "", body)
    assert not set("#%~^±†") & set(bare)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert "_" not in bare
    for name in re.findall(r"\\([a-zA-Z]+)", bare):
        assert name in {
            "begin", "end", "toprule", "midrule", "bottomrule", "textbf", "pm", "dagger",
            "textbackslash", "textasciitilde", "textasciicircum",
        }, name  # fmt: skip
    rows = [line for line in bare.splitlines() if "&" in line]
    assert all(line.endswith(r" \\") for line in rows)
    return [len(columns[1]), *(1 + line.count("&") for line in rows)]


def test_latex_has_rows_of_equal_length_and_the_best_in_bold() -> None:
    latex = tables.latex(tables.accuracies(Board(SCORES, "a"), "mean_last5"))
    assert structure(latex) == [5] * 6
    assert r"b & \textbf{80.0 $\pm$ 0.0} & 50.0 $\pm$ 0.0 & 65.0 $\pm$ 0.0 & 1.5 \\" in latex
    assert r"fedbn $\dagger$ & 99.0" in latex
    for table in tables.tables(Board(SCORES, "a")):
        assert len(set(structure(tables.latex(table)))) == 1


@pytest.mark.parametrize("sign", [*r"&%#_{}$~\ ^".replace(" ", ""), "±"])
def test_latex_of_names_with_a_sign_of_its_own(sign: str) -> None:
    name = f"x{sign}y"
    found = Board([score(name, 0, 70.0, name), score("b", 0, 60.0, name)], name)
    for table in tables.tables(found):
        assert len(set(structure(tables.latex(table)))) == 1
    assert tables.latex(tables.differences(found)).startswith("% difference to x")


@pytest.mark.parametrize("name", ["[x]", "*x"])
def test_latex_of_a_row_that_begins_like_an_argument(name: str) -> None:
    r"""After ``\\`` LaTeX takes a bracket or a star, even on the next line, for that command's own."""
    latex = tables.latex(tables.accuracies(board(("a", 0, 70.0), (name, 0, 60.0)), "mean_last5"))
    assert not re.search(r"\\\\\s*\n\s*[\[*]", latex)


def test_latex_writes_each_sign_once() -> None:
    escaped = tables.latex(tables.accuracies(board((SPECIAL, 0, 70.0)), "mean_last5"))
    expected = r"a\&b\%c\#d\_e\{f\}g\$h\textasciitilde{}i\textbackslash{}j"
    assert f"\n{expected} & 70.0 & 1.0 \\\\" in escaped


def shown(capsys: pytest.CaptureFixture[str], found: Sequence[Score]) -> str:
    for table in tables.tables(Board(found, "a")):
        tables.show(table)
    return capsys.readouterr().out


def test_tables_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, SCORES)
    assert "80.0 ± 0.0 *" in said and "99.0 ± 0.0" in said and "99.0 ± 0.0 *" not in said
    assert "† ifca: is told the number of groups" in said


@pytest.mark.parametrize("name", ["skew[dirichlet]", "skew[/]", "[red]x"])
def test_names_with_brackets_are_shown(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """rich takes brackets for its markup."""
    assert name in shown(capsys, [score("a", 0, 70.0, name), score(name, 0, 60.0, name)])


def test_no_figure_is_cut_off_in_a_wide_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Scenarios of ordinary runs have long names; a log keeps no more than what is printed."""
    names = [f"fashion_mnist, Dirichlet 0.{k}, rotate 4, mlp, 32 clients, 40 rounds" for k in range(4)]
    found = [score("a", seed, 71.0 + seed + 2 * k, name) for seed in (0, 1) for k, name in enumerate(names)]
    said = shown(capsys, found)
    for value in ("71.5 ± 0.7", "73.5 ± 0.7", "75.5 ± 0.7", "77.5 ± 0.7", "74.5 ± 0.7"):
        assert value in said
