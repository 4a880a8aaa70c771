"""A comparison that goes on from a kept scores.csv, its run folders gone: on 1 and 3 ranks, and misused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import ready
import yaml
from running import end, one_line, result
from test_compare import CELLS, MATRIX, TUNING, Done, begin, command, has, plan, refused, scores, write

from amn_mpi import asked, compare, kept, matrix
from amn_mpi.matrix import Cell
from amn_mpi.report import comparison, panels
from amn_mpi.scores import FIGURES

FILES = ("tables.md", "tables.tex", "scores.csv")
CONTROLS = """
seeds: [0, 1]
scenarios: {iid: {data: {labels: iid}}}
reference: amn
methods:
  amn:
  fedavg_prior: {method: {name: fedavg, prior: 1.0}}
  fedavg:
  fedavg_ft:
  fedavg_ft_prior: {method: {name: fedavg_ft, prior: 1.0}}
  fedbn: {model: {name: mlp_bn}}
  ifca:
"""
APART = {
    "fedavg_prior": "with AMN's class offsets: a control of this project",
    "fedavg_ft_prior": "with AMN's class offsets: a control of this project",
    "fedbn": "trains the batch-norm form of the model",
    "ifca": "is told the number of groups",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """On 1 and on 3 ranks; ``kept1.csv`` and ``kept3.csv`` beside are what stays of them."""
    found = Done(tmp_path_factory.mktemp("kept"), started=False)
    assert all((said.returncode, said.stderr) == (0, "") for said in found.said.values())
    for ranks, out in found.out.items():
        shutil.copy(out / "scores.csv", table(found, ranks))
    return found


def table(found: Done, ranks: int = 3) -> Path:
    return found.file.parent / f"kept{ranks}.csv"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def results(folder: Path) -> list[str]:
    return sorted(path.parent.relative_to(folder).as_posix() for path in folder.rglob("result.json"))


# ---- as a user runs it


def test_nothing_is_trained_and_the_tables_are_the_same(done: Done, tmp_path: Path) -> None:
    """A third time with the table that the second has left."""
    for ranks in (1, 3):
        out = tmp_path / f"on{ranks}"
        words = (done.file, "--known", table(done, ranks), "--out", out)
        again = command(*words, ranks=ranks * (ranks > 1))
        assert (again.returncode, again.stderr) == (0, "")
        has(again.stdout, f"12 runs, 12 known from {table(done, ranks)}, 0 to do", "difference to fedavg_ft")
        assert sorted(p.name for p in out.iterdir()) == sorted([".lock", "comparison.json", *FILES])
        for name in FILES:
            assert (out / name).read_bytes() == (done.out[ranks] / name).read_bytes(), name
    third = plan(done.file, "--known", tmp_path / "on3" / "scores.csv", "--out", tmp_path / "third")
    third.report()
    for name in FILES:
        assert (tmp_path / "third" / name).read_bytes() == (done.out[3] / name).read_bytes(), name


def test_only_cells_with_a_changed_key_are_trained(done: Done, tmp_path: Path) -> None:
    file = write(tmp_path, MATRIX.replace("momentum: 0.5", "momentum: 0.25"))
    changed = [name for name in CELLS if "fedavg_ft" in name]
    for ranks in (1, 3):
        out = tmp_path / f"on{ranks}"
        said = ready.compare(file, "--known", table(done), "--out", out, ranks=ranks)
        assert said.returncode == 0
        has(said.stdout, f"12 runs, 8 known from {table(done)}, 4 to do", f"[4/4] {changed[-1]}")
        has(
            one_line(said.stderr),
            f"{table(done)}: 4 of its runs were made with other keys than {file} has now",
            f"4 are run again, the first {changed[0]} (differs in: local)",
            f"these lines go to {out / 'left_out.csv'}, not to scores.csv",
        )
        assert results(out) == sorted(changed)
        assert result(out / changed[0])["config"]["local"]["momentum"] == 0.25
        before, now = lines(table(done)), lines(out / "scores.csv")
        assert [row for row in now if "fedavg_ft" not in row] == [r for r in before if "fedavg_ft" not in r]
        assert len(now) == 13 and not set(now) & {row for row in before if "fedavg_ft" in row}
        assert lines(out / "left_out.csv")[1:] == [row for row in before if "fedavg_ft" in row]
        both = (plan(file, "--out", tmp_path / f"copy{ranks}", "--known", out / "scores.csv"), out)
        assert both[0].todo == [], "kept and new runs together are known"


# ---- what is in the table, and what is asked for


def test_what_is_not_asked_for_stays_in_the_table(done: Done, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = plan(done.file, "--known", table(done), "--out", out, "--methods", "amn", "--scenarios", "skew")
    assert found.todo == []
    found.report()
    for name in FILES:
        assert (out / name).read_bytes() == (done.out[3] / name).read_bytes(), name


def test_seeds_that_the_file_no_longer_has_stay_in_the_table(done: Done, tmp_path: Path) -> None:
    file, out = write(tmp_path, MATRIX.replace("seeds: [0, 1]", "seeds: [1]")), tmp_path / "out"
    plan(file, "--known", table(done), "--out", out).report()
    assert sorted(lines(out / "scores.csv")) == sorted(lines(table(done)))
    assert "±" not in (out / "tables.md").read_text().replace("mean ± std", ""), "one seed"
    more = plan(file, "--known", out / "scores.csv", "--out", tmp_path / "more", "--seeds", "0,1")
    assert more.todo == []


def test_a_finished_folder_comes_before_the_table(done: Done, tmp_path: Path) -> None:
    """The table says otherwise of a run that is there."""
    out = done.copy(tmp_path, 3)
    shutil.rmtree(out / "skew")
    other = tmp_path / "other.csv"
    other.write_text(table(done).read_text().replace(scores(out)[0]["mean_last5"], "99.125"))
    found = plan(done.file, "--known", other, "--out", out)
    found.report()
    assert found.todo == []
    assert lines(out / "scores.csv") == lines(table(done)) != lines(other)
    (out / CELLS[0] / "result.json").unlink()
    del found  # its lock
    plan(done.file, "--known", other, "--out", out).report()
    assert scores(out)[0]["mean_last5"] == "99.125"


def test_the_table_may_be_the_one_that_is_written(done: Done, tmp_path: Path) -> None:
    """Its lines that no longer hold are nowhere else."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(table(done), out / "scores.csv")
    file = write(tmp_path, MATRIX.replace("momentum: 0.5", "momentum: 0.25"))
    found = plan(file, "--known", out / "scores.csv", "--out", out)
    assert len(found.todo) == 4
    both = lines(out / "scores.csv")[1:] + lines(out / "left_out.csv")[1:]
    assert sorted(both) == sorted(lines(table(done))[1:])


def test_no_line_of_the_table_that_is_written_is_lost(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the only one: keys change once more, then nobody names it, then all are taken back."""
    out, whole = tmp_path / "out", lines(table(done))[1:]
    out.mkdir()
    shutil.copy(table(done), out / "scores.csv")
    known = ("--known", out / "scores.csv", "--out", out)
    changed = MATRIX.replace("momentum: 0.5", "momentum: 0.25")
    for text in (changed, changed.replace("common_rounds: 1", "common_rounds: 0")):
        plan(write(tmp_path, text), *known)
    mine = [row for row in whole if "wild" not in row]
    assert sorted(lines(out / "left_out.csv")[1:]) == sorted(mine)
    shutil.copytree(done.out[3] / CELLS[0], out / CELLS[0])
    capsys.readouterr()
    plan(done.file, "--out", out)
    told = one_line(capsys.readouterr().err)
    has(told, f"{out / 'scores.csv'}: 4 of its runs are neither there as folders")
    assert len(lines(out / "scores.csv")) == 2
    assert sorted(lines(out / "left_out.csv")[1:] + lines(out / "scores.csv")[1:]) == sorted(whole)
    assert plan(done.file, "--known", out / "left_out.csv", "--out", out).todo == []
    assert sorted(lines(out / "scores.csv")[1:]) == sorted(whole)


def test_a_dry_run_says_what_is_known(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "out", write(tmp_path, MATRIX.replace("momentum: 0.5", "momentum: 0.25"))
    shutil.copytree(done.out[3] / CELLS[0], out / CELLS[0])
    assert compare._plan([str(file), "--out", str(out), "--known", str(table(done)), "--dry_run"]) is None
    said, told = capsys.readouterr()
    has(said, f"12 runs in {out}, 7 known from {table(done)}")
    states = [line.split()[-1] for line in said.splitlines() if "/seed" in line]
    assert [states.count(word) for word in ("known", "done", "do")] == [7, 1, 4]
    has(one_line(told), "4 are run again")
    assert [path.name for path in out.iterdir()] == ["iid"], "nothing is written"


def test_versions_of_the_package_are_told(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.csv"
    (version,) = {row["version"] for row in scores(done.out[3]) if row["version"]}
    other.write_text(table(done).read_text().replace(f",{version},", ",0.0.7,"))
    assert plan(done.file, "--known", other, "--out", tmp_path / "out").todo == []
    has(capsys.readouterr().out, f"12 known from {other} (some made with amn_mpi 0.0.7), 0 to do")


# ---- named in the comparison's file


def test_a_comparison_may_name_its_table(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Relative to its own folder; where there is none yet, nothing is known."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "results").mkdir()
    file = write(tmp_path / "configs", MATRIX + "known: ../results/my.csv\n")
    path, out = tmp_path / "results" / "my.csv", tmp_path / "out"
    assert len(plan(file, "--out", out).todo) == 12
    has(capsys.readouterr().out, f"{file}: known = {path}: there is no such file yet", "12 runs, 12 to do")
    shutil.copy(table(done), path)
    assert plan(file, "--out", out).todo == []
    has(capsys.readouterr().out, f"12 runs, 12 known from {path}, 0 to do")
    assert len(plan(file, "--out", out, "--known", "none").todo) == 12
    has(capsys.readouterr().out, "12 runs, 12 to do")
    empty = tmp_path / "empty.csv"
    empty.write_text(kept.text([]))
    assert len(plan(file, "--out", out, "--known", empty).todo) == 12, "the command line comes first"
    file.write_text(file.read_text().replace("../results/my.csv", "[a.csv]"))
    has(refused(file, "--out", out, kind=compare.ConfigError), "known = ['a.csv']: valid is the path")


def test_a_table_that_is_no_good_is_refused_at_once(done: Done, tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.csv", tmp_path / "out"
    bad.write_text(table(done).read_text()[:-30])
    has(refused(done.file, "--known", bad, "--out", out), f"{bad}: its last line is cut short")
    assert not out.exists()
    head, first, *rest = csv.reader(table(done).read_text().splitlines())
    again = first.copy()
    again[head.index("trial")], again[head.index("mean_last5")] = "3", "1.0"
    twice = tmp_path / "twice.csv"
    twice.write_text("".join(f"{','.join(row)}\n" for row in (head, first, again, *rest)))
    told = f"{first[0]}/{first[1]}/seed{first[head.index('seed')]}: the table of known runs has it twice, "
    has(
        refused(done.file, "--known", twice, "--out", out), f"{told}{first[head.index('mean_last5')]} and 1.0"
    )
    again[head.index("mean_last5")] = first[head.index("mean_last5")]
    twice.write_text("".join(f"{','.join(row)}\n" for row in (head, first, again, *rest)))
    assert plan(done.file, "--known", twice, "--out", tmp_path / "same").todo == []
    process = begin(done.file, "--known", bad, "--out", out, ranks=3)
    said = end(process, 60)
    assert said.returncode == 1 and one_line(said.stderr).startswith(f"amn_mpi: {bad}: ")


def finished(file: Path, out: Path, percent: Callable[[Cell], float], folders: Collection[str] = ()) -> None:
    """As if they, or some of them, had been run."""
    for cell in matrix.read(str(file), {}, []).cells:
        if folders and cell.folder not in folders:
            continue
        place = {"scenario": cell.scenario, "label": cell.label, "seed": cell.seed, "trial": cell.trial}
        figures = dict.fromkeys(FIGURES, percent(cell))
        found = {"method": cell.config.method.name, "seed": cell.seed, "config": cell.config.as_dict()}
        (out / cell.folder).mkdir(parents=True)
        (out / cell.folder / "result.json").write_text(json.dumps({**found, **figures, "cell": place}))


# ---- methods that are listed apart


def test_controls_are_listed_apart_by_a_table_alone(tmp_path: Path) -> None:
    """They are the best; some of them beside published methods of the same name, one known and one run."""
    percent = {"amn": 70.0, "fedavg": 60.0, "fedavg_ft": 65.0}
    file, out, again, both = (
        write(tmp_path, CONTROLS),
        *(tmp_path / name for name in ("out", "again", "both")),
    )
    finished(file, out, lambda cell: percent.get(cell.label, 90.0) + cell.seed)
    plan(file, "--out", out).report()
    table = (out / "tables.md").read_text()
    has(table, "| fedavg | 60.5 ± 0.7 | 3.0 |", "| amn | **70.5 ± 0.7** | 1.0 |")
    for name, why in APART.items():
        has(table, f"| {name} † | 90.5 ± 0.7 | - |", f"† {name}: {why}")
    shutil.copytree(out / "iid" / "fedavg", both / "iid" / "fedavg")
    shutil.copytree(out / "iid" / "fedavg_prior", both / "iid" / "fedavg_prior")
    for folder in (again, both):
        more = plan(file, "--out", folder, "--known", out / "scores.csv")
        more.report()
        assert more.todo == []
        for name in FILES:
            assert (folder / name).read_bytes() == (out / name).read_bytes(), (folder, name)
        board = comparison.read(folder).board
        assert {label: board.aside(label) for label in board.labels if board.aside(label)} == APART
        assert board.ranked() == list(percent)
    file = write(tmp_path, CONTROLS.replace("prior: 1.0", "prior: 0.5", 1), "other.yaml")
    other = plan(file, "--out", tmp_path / "other", "--known", out / "scores.csv")
    assert [cell.folder for cell in other.todo] == ["iid/fedavg_prior/seed0", "iid/fedavg_prior/seed1"]


# ---- tuning


def test_a_tuning_goes_on_from_kept_trials(tmp_path: Path) -> None:
    file, out = write(tmp_path, TUNING), tmp_path / "out"
    finished(file, out, lambda cell: 50.0 + cell.trial)
    plan(file, "--out", out).report()
    again = plan(file, "--out", tmp_path / "again", "--known", out / "scores.csv")
    again.report()
    assert again.todo == []
    for name in ("tuned.yaml", "scores.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name
    # A value more at the beginning of each grid: its trial alone is new, and the best has another number.
    more = TUNING.replace("trials: 2", "trials: 3").replace("[0.5, 0.1]", "[0.9, 0.5, 0.1]")
    file = write(tmp_path, more.replace("[1.0e+30, 0.05]", "[0.01, 1.0e+30, 0.05]"), "more.yaml")
    wider = plan(file, "--out", tmp_path / "wider", "--known", out / "scores.csv")
    assert [cell.folder for cell in wider.todo] == ["skew/mine-00/seed100", "skew/fedavg-00/seed100"]
    finished(file, tmp_path / "wider", lambda cell: 1.0, [cell.folder for cell in wider.todo])
    del wider  # and its lock
    plan(file, "--out", tmp_path / "wider", "--known", out / "scores.csv").report()
    first, second = (
        yaml.safe_load((f / "tuned.yaml").read_text())["methods"] for f in (out, tmp_path / "wider")
    )
    assert first == second and first["mine"]["method"]["lam"] == 0.1
    assert [row["trial"] for row in scores(tmp_path / "wider")] == ["0", "1", "2"] * 2


def test_nothing_is_chosen_from_some_of_the_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the scenario decides in which a trial has run."""
    two = TUNING.replace("{skew: {data: {labels: dirichlet}}}", "{skew: , flat: {data: {labels: iid}}}")
    file, out = write(tmp_path, two), tmp_path / "out"
    finished(file, out, lambda cell: {"skew": 50.0, "flat": 80.0}[cell.scenario] - cell.trial)
    shutil.rmtree(out / "skew/mine-01")
    plan(file, "--out", out, "--scenarios", "flat").report()
    said = capsys.readouterr()
    has(one_line(said.err), "mine: 1 of its runs are missing: nothing is chosen for it")
    has(said.out, "79.00 (1 of 2 runs)", "65.00")
    assert set(yaml.safe_load((out / "tuned.yaml").read_text())["methods"]) == {"fedavg"}
    (out / "tuned.yaml").unlink()
    shutil.rmtree(out / "skew/fedavg-00")
    shutil.rmtree(out / "flat/fedavg-00")
    plan(file, "--out", out).report()
    said = capsys.readouterr()
    assert said.err.count("nothing is chosen for it") == 2 and "chosen values" not in said.out
    assert not (out / "tuned.yaml").exists()


# ---- the report


def test_the_report_draws_what_is_known(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One cell from its folder, the others from the table."""
    out = tmp_path / "out"
    shutil.copytree(done.out[3] / CELLS[2], out / CELLS[2])
    found = plan(done.file, "--known", table(done), "--out", out, "--logging.report", "true")
    found.report()
    capsys.readouterr()
    found.picture()
    said, told = capsys.readouterr()
    assert f"report in {out / 'report.html'}" in said
    has(one_line(told), f"{out}: 11 runs are known from scores.csv alone", "iid/amn/seed0", "and 1 more")
    page, whole = (comparison.read(folder) for folder in (out, done.out[3]))
    assert sorted(page.runs) == sorted(CELLS) and page.missing == {}
    for scenario in ("iid", "skew"):
        for cost in panels.COSTS:
            mine, other = (panels.points(each, scenario, cost) for each in (page, whole))
            assert [(p.label, p.accuracy) for p in mine] == [(p.label, p.accuracy) for p in other]
            assert [p.cost for p in mine] == pytest.approx([p.cost for p in other], abs=0.0006)
        mine, other = (panels.curve(each, scenario, "amn") for each in (page, whole))
        assert list(mine) == list(other) == [1, 2]
        assert list(mine.values()) == pytest.approx(list(other.values()), abs=0.051)
    assert "11 runs are known from scores.csv alone" in (out / "report.html").read_text()


def test_a_report_of_nothing_but_known_runs(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    plan(done.file, "--known", table(done), "--out", out).report()
    known = asked.read(out)
    assert known is not None and known.known == CELLS
    capsys.readouterr()
    from amn_mpi.report import __main__

    assert __main__.main([str(out)]) == 0
    has(one_line(capsys.readouterr().err), "12 runs are known from scores.csv alone")
    assert (out / "report.html").is_file() and (out / "figures" / "curves.pdf").is_file()
    (out / "scores.csv").write_text("".join(f"{line}\n" for line in lines(table(done))[:-1]))
    found = comparison.read(out)
    assert found.missing == {CELLS[-1]: "not in scores.csv"}
    (out / "scores.csv").write_text("scenario\n")
    capsys.readouterr()
    assert __main__.main([str(out)]) == 1
    has(one_line(capsys.readouterr().err), "none of its 12 runs is finished", "known, but scores.csv: line 1")
