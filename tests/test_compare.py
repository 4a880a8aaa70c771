"""A comparison as a user runs it: on 1 and 3 ranks, stopped and gone on with, tuned, and misused."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, Popen

import plain
import pytest
import ready
import yaml
from running import end, one_line, result, start, wait_for

from amn_mpi import compare, matrix, neutral
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.plan import outcome
from amn_mpi.runfolder import lock

# "wild" leaves the numbers in its first round: that must not keep the others from finishing.
MATRIX = """
seeds: [0, 1]
keys:
  rounds: 2
  data: {clients: 4, train_per_client: 16, test_per_client: 8, concept: none, cache: CACHE}
  model: {name: linear}
  local: {steps: 2}
scenarios:
  iid: {data: {labels: iid}}
  skew: {data: {labels: dirichlet}}
reference: fedavg_ft
methods:
  amn: {method: {common_rounds: 1}}
  wild: {method: {name: fedavg}, local: {lr: 1.0e+30}}
  fedavg_ft: {local: {momentum: 0.5}}
"""
CELLS = [f"{s}/{m}/seed{k}" for s in ("iid", "skew") for k in (0, 1) for m in ("amn", "wild", "fedavg_ft")]
LONG = ("--rounds", 800, "--evaluate.every", 800)  # seconds
DIARY = """
from amn_mpi.callbacks import Callback

class Diary(Callback):
    def begin(self, config, folder, facts):
        self.path = folder / "diary"
        return 0
    def failed(self, reason):
        self.path.write_text(f"failed: {reason}")
"""
TUNING = """
seeds: [100]
keys:
  rounds: 2
  data: {clients: 4, train_per_client: 16, test_per_client: 8, concept: none, cache: CACHE, validation: 0.25}
  model: {name: linear}
  local: {steps: 2}
scenarios: {skew: {data: {labels: dirichlet}}}
trials: 2
grid:
  mine: {method: {name: ditto, lam: [0.5, 0.1]}, local: {epochs: 1}}
  fedavg: {local: {lr: [1.0e+30, 0.05]}}
"""


def begin(*args: object, ranks: int = 0) -> Popen[str]:
    """``python -m amn_mpi.compare ARGS`` in the background."""
    return start("amn_mpi.compare", *args, ranks=ranks, script="-m")


def command(*args: object, ranks: int = 0) -> CompletedProcess[str]:
    return end(begin(*args, ranks=ranks), 60)


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    (folder / name).write_text(text.replace("CACHE", str(folder / "cache")))
    return folder / name


def scores(folder: Path) -> list[dict[str, str]]:
    with open(folder / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def what_counts(folder: Path) -> list[dict[str, str]]:
    """The scores but for what depends on the number of ranks."""
    return [
        {k: v for k, v in row.items() if k not in ("round_seconds", "bytes_sent", "train_seconds", "ranks")}
        for row in scores(folder)
    ]


def has(line: str, *words: object) -> None:
    assert [word for word in words if str(word) not in line] == [], line


class Done:
    """One comparison, run on 1 and on 3 ranks, which a user starts or which stand ready."""

    def __init__(self, folder: Path, started: bool) -> None:
        self.file = write(folder, MATRIX)
        self.out = {ranks: folder / f"on{ranks}" for ranks in (1, 3)}
        if started:
            processes = {n: begin(self.file, "--out", out, ranks=n * (n > 1)) for n, out in self.out.items()}
            self.said = {ranks: end(process, 60) for ranks, process in processes.items()}
        else:
            self.said = {n: ready.compare(self.file, "--out", out, ranks=n) for n, out in self.out.items()}

    def copy(self, folder: Path, ranks: int = 1) -> Path:
        """A finished comparison that a test may spoil."""
        shutil.copytree(self.out[ranks], folder / "out")
        return folder / "out"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(tmp_path_factory.mktemp("done"), started=True)


def plan(*args: object) -> compare.Plan:
    """What rank 0 would do, in this process."""
    found = compare._plan(list(map(str, args)))
    assert found is not None
    return found


def refused(*args: object, kind: type[UserError] = UserError) -> str:
    """The line with which rank 0 refuses, in this process: starting another one takes a second."""
    with pytest.raises(UserError) as caught:
        compare._plan(list(map(str, args)))
    assert "\n" not in str(caught.value) and caught.value.status == kind.status
    return str(caught.value)


# ---- a matrix


def test_the_number_of_ranks_changes_no_score(done: Done) -> None:
    for said in done.said.values():
        assert (said.returncode, said.stderr) == (0, "")
    one, three = (what_counts(done.out[n]) for n in (1, 3))
    assert one == three
    assert [f"{row['scenario']}/{row['label']}/seed{row['seed']}" for row in one] == CELLS
    for name in CELLS:
        a, b = (result(done.out[n] / name) for n in (1, 3))
        assert a["config"] == b["config"] and a.get("per_client") == b.get("per_client")
    tables = [(done.out[n] / "tables.md").read_text() for n in (1, 3)]
    assert tables[0] == tables[1]
    assert {row["bytes_sent"] for row in scores(done.out[1])} == {"0"}
    sent = {(row["label"], row["bytes_sent"]) for row in scores(done.out[3])}
    assert len(sent) == 3, "a cell's bytes depend on the cells before it"


def test_scores_are_those_of_the_cells(done: Done) -> None:
    rows = {f"{row['scenario']}/{row['label']}/seed{row['seed']}": row for row in scores(done.out[3])}
    for name in CELLS:
        found, row = result(done.out[3] / name), rows[name]
        assert found["cell"] == {
            "scenario": row["scenario"], "label": row["label"], "seed": int(row["seed"]), "trial": -1,
            "digest": row["digest"],
        }  # fmt: skip
        assert row["method"] == found["method"] == found["config"]["method"]["name"]
        if row["label"] != "wild":
            assert row["mean_last5"] == str(found["mean_last5"])
            sent = sum(found["bytes_sent"].values()) - found["bytes_sent"].get("checkpoint", 0)
            assert row["bytes_sent"] == str(sent)
            lines = (done.out[3] / name / "metrics.jsonl").read_text().splitlines()
            curve = [f"{json.loads(line)['mean_accuracy']:.1f}" for line in lines]
            assert [row["at1"], row["at2"]] == curve
            assert row["train_seconds"] == f"{3 * found['seconds']['mean']['train']:.3f}"
            assert (found["ranks"], found["clients"], found["rounds"]) == (3, 4, 2)
    assert not list(done.out[3].rglob("models.h5"))


def test_a_cell_is_what_a_run_of_its_own_gives(done: Done, tmp_path: Path) -> None:
    """The last cell of twelve, alone, with the command that an ordinary run has."""
    cell = done.out[3] / CELLS[-1]
    plain.here("--config", cell / "config.yaml", "--out", tmp_path / "run")
    alone, within = result(tmp_path / "run"), result(cell)
    for key in ("per_client", "mean_last5", "best_accuracy", "worst10", "models"):
        assert alone[key] == within[key], key


def test_a_diverged_cell_is_recorded_and_the_others_finish(done: Done) -> None:
    for ranks, out in done.out.items():
        found = result(out / "skew/wild/seed1")
        has(found["diverged"], "round 1: every client of the cohort diverged")
        assert "mean_last5" not in found
        wild = [row for row in scores(out) if row["label"] == "wild"]
        assert len(wild) == 4 and {row["mean_last5"] for row in wild} == {"nan"}
        has(done.said[ranks].stdout, "12 runs, 12 to do", "[2/12] iid/wild/seed0: round 1: every client")
        table = (out / "tables.md").read_text()
        assert "| wild | diverged | diverged | diverged | 3.0 |" in table
        assert "| wild | diverged | diverged | diverged |" in table
        assert "difference to fedavg_ft" in table and "**" in table
        latex = (out / "tables.tex").read_text()
        assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
        assert r"fedavg\_ft" in latex


def test_a_line_tells_what_diverged() -> None:
    figures = {"mean_last5": 51.25, "best_accuracy": 52.5}
    assert outcome({**figures, "diverged": {}}) == "51.25 (best 52.50)"
    assert outcome({**figures, "diverged": {"4": 1, "7": 2}}) == "51.25 (best 52.50), 3 turns diverged"
    assert outcome({"diverged": "round 1: all"}) == "round 1: all"


def test_a_finished_matrix_is_not_run_again(done: Done, tmp_path: Path) -> None:
    out = done.copy(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    (out / "tables.md").unlink()
    found = plan(done.file, "--out", out)
    assert (found.ranks(), found.todo, len(before)) == (0, [], 12)
    found.report()
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert (out / "tables.md").read_text() == (done.out[1] / "tables.md").read_text()


def test_an_unfinished_cell_is_run_again_and_no_other(done: Done, tmp_path: Path) -> None:
    out = done.copy(tmp_path)
    (out / CELLS[6] / "result.json").unlink()
    (out / CELLS[6] / "metrics.jsonl").write_text('{"round": 1, "cli')
    (out / CELLS[6] / ".lock").write_text("")
    shutil.rmtree(out / CELLS[11])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    again = command(done.file, "--out", out, "--threads", 2, ranks=3)
    assert again.returncode == 0
    has(one_line(again.stderr), "2 of its runs are neither there as folders nor known", "left_out.csv")
    has(again.stdout, "12 runs, 2 to do", f"[1/2] {CELLS[6]}", f"[2/2] {CELLS[11]}")
    after = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert {path: after[path] for path in before} == before and len(after) == 12
    assert what_counts(out) == what_counts(done.out[1])
    rows = [json.loads(line) for line in (out / CELLS[6] / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2]


def test_a_part_of_a_matrix(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = done.copy(tmp_path)
    found = plan(done.file, "--out", out, "--methods", "amn,fedavg_ft", "--scenarios", "skew", "--seeds", 1)
    found.report()
    shown = capsys.readouterr().out
    has(shown, "2 runs, 0 to do", "skew", "difference to fedavg_ft")
    assert "wild" not in shown
    assert "±" not in shown.replace("mean ± std", ""), "there is one seed"
    # What earlier commands have run stays in the files; tables are of the seeds asked for.
    assert "±" not in (out / "tables.md").read_text().replace("mean ± std", "")
    assert [row["label"] for row in scores(out)] == [row["label"] for row in scores(done.out[1])]
    assert "wild" in (out / "tables.md").read_text()


def test_runs_of_other_seeds_stay_in_the_table(done: Done, tmp_path: Path) -> None:
    """An earlier command's --seeds: the file never had them."""
    out = done.copy(tmp_path)
    whole = (out / "scores.csv").read_bytes()
    shutil.copytree(out / CELLS[0], (out / CELLS[0]).parent / "seedless")
    file = write(tmp_path, MATRIX.replace("seeds: [0, 1]", "seeds: [1]"))
    plan(file, "--out", out).report()
    assert (out / "scores.csv").read_bytes() != whole, "in another order"
    assert sorted(map(str, scores(out))) == sorted(map(str, scores(done.out[1])))
    assert "±" not in (out / "tables.md").read_text().replace("mean ± std", ""), "those asked for"


def test_a_changed_key_is_refused(done: Done, tmp_path: Path) -> None:
    out = done.copy(tmp_path)
    line = refused(done.file, "--out", out, "--local.steps", 3)
    has(line, out / "iid/amn/seed0", "local.steps = 2, now 3", "delete it", "--out")
    text = MATRIX.replace("momentum: 0.5", "momentum: 0.25")
    line = refused(write(tmp_path, text), "--out", out, "--data.cache", tmp_path)
    has(line, out / "iid/fedavg_ft/seed0", "local.momentum = 0.5, now 0.25")
    has(refused(done.file, "--out", out, "--local.steps", 3, "--dry_run"), "local.steps = 2, now 3")


def test_code_that_has_changed_is_refused(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result of another form of a method would count as one of today's."""
    out = done.copy(tmp_path)
    monkeypatch.setitem(neutral.REVISED, "fedavg_ft", 1)
    line = refused(done.file, "--out", out)
    has(line, out / "iid/fedavg_ft/seed0", "was run with a method that has changed since; delete it")


def test_a_dry_run_runs_nothing(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, MATRIX)
    assert compare._plan([str(file), "--out", str(tmp_path / "out"), "--dry_run"]) is None
    said = capsys.readouterr().out
    has(said, "12 runs", "iid/amn/seed0", "skew/fedavg_ft/seed1")
    assert said.count("to do") == 12
    assert sorted(tmp_path.iterdir()) == [file]
    out = done.copy(tmp_path)
    (out / CELLS[3] / "result.json").unlink()
    before = sorted(out.rglob("*"))
    assert compare._plan([str(done.file), "--out", str(out), "--dry_run"]) is None
    said = capsys.readouterr().out
    assert (said.count("to do"), sum(line.rstrip().endswith(" done") for line in said.splitlines())) == (
        1,
        11,
    )
    assert sorted(out.rglob("*")) == before


def test_no_more_ranks_than_the_smallest_run_can_use(tmp_path: Path) -> None:
    text = MATRIX.replace("{labels: iid}", "{labels: iid, clients: 2}")
    assert plan(write(tmp_path, text), "--out", tmp_path / "a").ranks() == 3
    assert plan(tmp_path / "my.yaml", "--out", tmp_path / "b", "--scenarios", "skew").ranks() == 5


def test_a_folder_of_the_comparison_s_name_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else ``compare quick --out quick`` does not go on when it is given a second time."""
    monkeypatch.chdir(tmp_path)
    what = ["anchor", "--out", "anchor", "--data.cache", str(tmp_path)]  # the one that is read in no time
    compare._plan([*what, "--dry_run"])
    first = capsys.readouterr().out
    assert first.count("to do") == 4
    (tmp_path / "anchor").mkdir()
    compare._plan([*what, "--dry_run"])
    assert capsys.readouterr().out == first


def test_tables_are_written_though_nobody_reads_what_is_shown(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``compare quick | head``, or a terminal that cannot show a sign, at the end of hours of runs."""
    out = done.copy(tmp_path)
    for name in ("tables.md", "tables.tex", "scores.csv"):
        (out / name).unlink()
    found = plan(done.file, "--out", out)

    def closed(*args: object, **keys: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("amn_mpi.progress.table", closed)
    with contextlib.suppress(BrokenPipeError, SystemExit):
        found.report()
    assert {"tables.md", "tables.tex", "scores.csv"} <= {path.name for path in out.iterdir()}


# ---- stopped


def test_a_stopped_matrix_is_finished_by_the_same_command(tmp_path: Path) -> None:
    """In the second of two cells, whose callbacks are told; meanwhile a second comparison is refused."""
    file, out = write(tmp_path, MATRIX), tmp_path / "out"
    what = (file, "--out", out, "--methods", "wild,fedavg_ft", "--scenarios", "iid", "--seeds", 0, *LONG)
    (tmp_path / "diary.py").write_text(DIARY)
    what += ("--logging.callbacks", f"{tmp_path / 'diary.py'}:Diary")
    process = begin(*what, ranks=3)
    first, second = (out / "iid" / name / "seed0" for name in ("wild", "fedavg_ft"))
    wait_for(second / "metrics.jsonl", 3, process)
    has(refused(*what), f"out = {out}", "another run is writing there now")
    process.terminate()
    stopped = end(process, 20)
    assert stopped.returncode != 0
    has(one_line(stopped.stderr), "stopped by SIGTERM")
    assert (first / "result.json").exists() and not (second / "result.json").exists()
    assert (second / "diary").read_text().startswith("failed: stopped by SIGTERM")
    assert not (second / ".lock").exists(), "given back"
    assert [row["label"] for row in scores(out)] == ["wild"], "kept as soon as it is finished"
    written = (first / "result.json").stat().st_mtime_ns
    again = command(*what)
    assert (again.returncode, again.stderr) == (0, "")
    has(again.stdout, "2 runs, 1 to do", "[1/1] iid/fedavg_ft/seed0")
    assert (first / "result.json").stat().st_mtime_ns == written
    assert len((second / "metrics.jsonl").read_text().splitlines()) == 800
    assert [row["label"] for row in scores(out)] == ["wild", "fedavg_ft"]


# ---- tuning


def test_a_tuning_chooses_values_for_another_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(write(tmp_path, TUNING), "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    rows = scores(out)
    assert [(row["label"], row["trial"]) for row in rows] == [
        ("mine", "0"), ("mine", "1"), ("fedavg", "0"), ("fedavg", "1")
    ]  # fmt: skip
    has(done.stdout, "4 runs, 4 to do", "diverged", "method.lam: 0.1", f"chosen values in {out}/tuned.yaml")
    assert result(out / "skew/mine-00/seed100")["per_client"]["test_samples"] == [4] * 4
    best = max(rows[:2], key=lambda row: float(row["mean_last5"]))["trial"]
    lam = {"0": 0.5, "1": 0.1}[best]
    chosen = yaml.safe_load((out / "tuned.yaml").read_text())["methods"]
    assert chosen["mine"] == {"method": {"name": "ditto", "lam": lam}, "local": {"epochs": 1}}
    assert chosen["fedavg"] == {"local": {"lr": 0.05}}, "the trial that diverged is chosen"
    text = "scenarios: {s: }\ntuned: tuned.yaml\nmethods: {mine: {local: {epochs: 3}}, fedavg: }"
    found = [cell.config for cell in matrix.read(str(write(out, text)), {}, []).cells]
    assert (found[0].method.name, found[0].method.lam, found[0].local.epochs) == ("ditto", lam, 3)
    assert found[1].local.lr == 0.05


def test_a_part_of_a_tuning_keeps_what_was_chosen_before(tmp_path: Path) -> None:
    """tuned.yaml holds all methods that are tuned, not only those of the last command."""
    file, out = write(tmp_path, TUNING), tmp_path / "out"
    figures = {"mean_last5": 50.0, "best_accuracy": 50.0, "worst10": 50.0}
    for cell in matrix.read(str(file), {}, ["--progress", "off"]).cells:
        place = {"scenario": cell.scenario, "label": cell.label, "seed": cell.seed, "trial": cell.trial}
        found = {"method": cell.config.method.name, "seed": cell.seed, "config": cell.config.as_dict()}
        (out / cell.folder).mkdir(parents=True)
        (out / cell.folder / "result.json").write_text(json.dumps({**found, **figures, "cell": place}))
    plan(file, "--out", out).report()
    whole = yaml.safe_load((out / "tuned.yaml").read_text())
    assert set(whole["methods"]) == {"mine", "fedavg"}
    plan(file, "--out", out, "--methods", "fedavg").report()
    assert yaml.safe_load((out / "tuned.yaml").read_text()) == whole


# ---- folders


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ordinary runs side by side."""
    folder = tmp_path_factory.mktemp("runs")
    small = ("--data.clients", 4, "--rounds", 2, "--local.steps", 2, "--progress", "off")
    for name in ("local", "fedavg"):
        what = ("--method.name", name, "--out", folder / name, "--data.cache", folder / f"cache-{name}")
        plain.here(*small, *what)
    return folder


def test_two_ordinary_runs(two_runs: Path) -> None:
    """With the module as its command line starts it; nothing is written beside the runs."""
    before = sorted(two_runs.rglob("*"))
    done = command(two_runs / "local", two_runs / "fedavg", "--reference", "local")
    assert (done.returncode, done.stderr) == (0, "")
    has(
        done.stdout,
        "local",
        "fedavg",
        "difference to local",
        "digits, Dirichlet 0.5, permute 2, mlp, 4 clients",
    )
    for name in ("local", "fedavg"):
        has(done.stdout, f"{result(two_runs / name)['mean_last5']:.1f}")
    assert sorted(two_runs.rglob("*")) == before


def test_all_runs_below_a_folder(two_runs: Path, tmp_path: Path) -> None:
    assert compare._plan([str(two_runs), "--out", str(tmp_path / "tables")]) is None
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == [
        "scores.csv",
        "tables.md",
        "tables.tex",
    ]
    assert [row["label"] for row in scores(tmp_path / "tables")] == ["fedavg", "local"]
    has((tmp_path / "tables" / "tables.md").read_text(), "difference to fedavg in points")


def test_the_folder_of_a_matrix(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels and scenarios are the matrix's own."""
    assert compare._plan([str(done.out[1]), "--out", str(tmp_path)]) is None
    key = ("scenario", "label", "seed", "digest")
    mine, whole = (sorted(tuple(row[k] for k in key) for row in scores(f)) for f in (tmp_path, done.out[1]))
    assert mine == whole
    has(capsys.readouterr().out, "wild", "diverged", "fedavg_ft", "skew")


def test_tables_of_folders_leave_the_scores_of_a_comparison(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines of known runs have no folders."""
    out = done.copy(tmp_path)
    shutil.rmtree(out / CELLS[0])
    (out / "tables.md").unlink()
    before = (out / "scores.csv").read_bytes()
    assert compare._plan([str(out), "--out", str(out)]) is None
    assert (out / "scores.csv").read_bytes() == before and (out / "tables.md").exists()
    has(capsys.readouterr().out, f"tables in {out}/tables.md and tables.tex\n")


def test_one_client_a_round_is_compared_with_all_of_them(done: Done, tmp_path: Path) -> None:
    """As many turns of clients: pFedHN's schedule."""
    for name, cell in (("all", CELLS[0]), ("one", CELLS[1])):
        shutil.copytree(done.out[1] / cell, tmp_path / name)
    path = tmp_path / "one" / "result.json"
    found = json.loads(path.read_text())
    keys = found["config"]
    for factor, cohort in ((4, 0.25), (4, 1.0)):
        text = {**found, "config": {**keys, "rounds": factor * keys["rounds"], "cohort": cohort}}
        path.write_text(json.dumps(text))
        if cohort == 0.25:
            assert compare._plan([str(tmp_path)]) is None
        else:
            has(refused(tmp_path), "but rounds x cohort = ", "give runs on the same data")


def test_a_folder_without_a_finished_run_is_told(
    two_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(path.parent for path in two_runs.rglob("result.json"))
    (tmp_path / "begun").mkdir()
    compare.compare_folders([str(first), str(tmp_path / "begun")], "", "")
    told = one_line(capsys.readouterr().err)
    assert told.endswith(f"{tmp_path / 'begun'}: left out: no finished run (result.json) in or below it")


def test_folders_that_cannot_be_compared(two_runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    has(refused(tmp_path / "empty"), tmp_path / "empty", "no finished run (result.json)")
    shutil.copytree(two_runs / "local", tmp_path / "again")
    line = refused(two_runs, tmp_path / "again")
    has(line, two_runs / "local", tmp_path / "again", "are both local on digits", "with seed 0; give one")
    path = tmp_path / "again" / "result.json"
    found = json.loads(path.read_text())
    found["config"]["local"]["epochs"] += 1
    path.write_text(json.dumps({**found, "config": {**found["config"], "out": "elsewhere"}}))
    has(refused(two_runs, tmp_path / "again"), "with seed 0, though with other local.epochs; give one")
    has(refused(two_runs, "nosuch", kind=ConfigError), "nosuch", "folders that hold runs, or one comparison")
    has(refused("quick", "quick_tune", kind=ConfigError), "quick", "one comparison")
    has(refused("nosuch", kind=ConfigError), "nosuch", "neither a folder", "quick, quick_tune")
    (tmp_path / "file").write_text("")
    has(refused(two_runs, "--out", tmp_path / "file"), f"{tmp_path}/file", "cannot be written")


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[1]",
    "no config": lambda text: json.dumps({**json.loads(text), "config": None}),
    "empty config": lambda text: json.dumps({**json.loads(text), "config": {}}),
    "no method": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "method"}),
    "unknown method": lambda text: json.dumps({**json.loads(text), "method": "nosuch"}),
    "text for a figure": lambda text: json.dumps({**json.loads(text), "mean_last5": "high"}),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_result_is_named(two_runs: Path, tmp_path: Path, how: str) -> None:
    shutil.copytree(two_runs / "local", tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    path.write_text(DAMAGE[how](path.read_text()))
    has(refused(two_runs / "fedavg", tmp_path / "run"), path, "not the result of a run")


@pytest.mark.parametrize("how", ["cut", "no config"])
def test_a_damaged_cell_is_named(done: Done, tmp_path: Path, how: str) -> None:
    out = done.copy(tmp_path)
    path = out / CELLS[4] / "result.json"
    path.write_text(DAMAGE[how](path.read_text()))
    has(refused(done.file, "--out", out), path, "not the result of a run")


# ---- misused


WRONG: list[tuple[str, tuple[str, ...]]] = [
    ("", ("compare what?", "--help")),
    ("FILE --seeds", ("--seeds", "a value is missing")),
    ("FILE --out --dry_run", ("--out", "a value is missing")),
    ("FILE --seed 1", ("--seed", "not for comparisons", "--seeds")),
    ("FILE --seed=1", ("--seed", "not for comparisons")),
    ("FILE --method.name local", ("--method.name", "not for comparisons", "--methods")),
    ("FILE --config amn", ("--config", "not for comparisons")),
    ("FILE --baselines local", ("--baselines", "not for comparisons")),
    ("FILE --progress off", ("--progress", "not for comparisons")),
    ("FILE --scenarios nosuch", ("--scenarios nosuch", "iid, skew")),
    ("FILE --methods amn,nosuch", ("--methods nosuch", "amn, wild, fedavg_ft")),
    ("FILE --seeds one", ("--seeds one", "0, 1")),
    ("FILE --nosuch 1", ("nosuch: unknown key", "command line", "valid are")),
    ("FILE --local.lr abc", ("local.lr = abc", "a number > 0")),
    ("FILE --reference nosuch", ("--reference nosuch", "amn, wild, fedavg_ft")),
    ("FILE FILE", ("FILE", "one comparison")),
    ("FILE --known", ("--known", "a value is missing")),
    ("FILE --known gone.csv", ("--known gone.csv: no such file", "scores.csv", "none")),
]


@pytest.mark.parametrize(("words", "told"), WRONG)
def test_command_lines_that_are_not_valid(tmp_path: Path, words: str, told: tuple[str, ...]) -> None:
    file, out = str(write(tmp_path, MATRIX)), tmp_path / "out"
    given = [file if word == "FILE" else word for word in words.split()]
    if "--out" not in given:
        given += ["--out", str(out)]
    has(refused(*given, kind=ConfigError), *(word.replace("FILE", file) for word in told))
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    ["--nosuch 1", "--methods local", "--seeds 0", "--reference nosuch", "--rounds 3", "--known a.csv"],
)
def test_options_that_mean_nothing_for_folders_are_refused(two_runs: Path, words: str) -> None:
    """Rather than left out: who asks for one method would take the table of all for its answer."""
    has(refused(two_runs, *words.split(), kind=ConfigError), words.split()[0])


def test_a_part_of_a_folder_is_refused(two_runs: Path) -> None:
    for folders in ([two_runs], [two_runs / "local", two_runs / "fedavg"]):
        line = refused(*folders, "--scenarios", "iid", kind=ConfigError)
        assert "scenarios" in line and "neither a folder with runs" not in line, line


def test_one_comparison_at_a_time_in_a_folder(tmp_path: Path) -> None:
    file, out = write(tmp_path, MATRIX), tmp_path / "out"
    out.mkdir()
    held = lock(out)
    has(refused(file, "--out", out), f"out = {out}: another run is writing there now")
    held.close()
    assert len(plan(file, "--out", out).todo) == 12


def test_the_folder_of_a_run_is_not_taken(done: Done, tmp_path: Path) -> None:
    """Its report would be overwritten by the comparison's."""
    out = done.copy(tmp_path) / CELLS[0]
    before = sorted(out.rglob("*"))
    has(refused(done.file, "--out", out), f"out = {out}: holds a run (metrics.jsonl, result.json); choose")
    assert sorted(out.rglob("*")) == before


def test_an_out_folder_that_cannot_be(tmp_path: Path) -> None:
    file = write(tmp_path, MATRIX)
    (tmp_path / "taken").write_text("")
    has(refused(file, "--out", tmp_path / "taken"), f"out = {tmp_path}/taken: cannot be written")
    has(
        refused(file, "--out", tmp_path / "taken" / "below"),
        f"out = {tmp_path}/taken/below: cannot be written",
    )


def test_a_cell_s_folder_that_cannot_be(tmp_path: Path) -> None:
    file, out = write(tmp_path, MATRIX), tmp_path / "out"
    out.mkdir()
    (out / "iid").write_text("a file where the scenario's folder belongs")
    found = plan(file, "--out", out)
    with pytest.raises(UserError, match=r"iid/amn/seed0.*: cannot be written: Not a directory"):
        found.open(found.todo[0])


def test_refusals_are_said_once_with_their_status(tmp_path: Path) -> None:
    """By the command itself: on three ranks, and where data or model do not fit in a later cell."""
    file = write(tmp_path, MATRIX)
    broken = write(tmp_path, MATRIX.replace("{labels: dirichlet}", "{clients: 100000}"), "broken.yaml")
    cases = [
        (begin(file, "--methods", "nosuch", ranks=3), 2, "--methods nosuch: not in"),
        (begin(tmp_path), 1, "no finished run"),
        (
            begin(broken, "--scenarios", "skew", "--out", tmp_path / "out", ranks=3),
            2,
            "data.clients = 100000",
        ),
    ]
    for process, status, word in cases:
        done = end(process, 60)
        line = one_line(done.stderr)
        assert line.startswith("amn_mpi: ") and word in line and done.returncode == status, line


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h"):
        assert compare._plan(["quick", word]) is None
        has(capsys.readouterr().out, "amn_mpi.compare", *(f"--{name}" for name in (*compare.LISTS, "out")))


# ---- what is checked before hours are spent


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("fedbn:", ("skew/fedbn/seed0", "no batch normalisation")),
        ("fedper: {method: {head: 4}}", ("skew/fedper/seed0", "method.head = 4", "valid is at most 1")),
        ("scaffold: {local: {momentum: 0.5}}", ("skew/scaffold/seed0", "local.momentum = 0.5")),
        ("fedprox: {method: {mu: 100.0}}", ("skew/fedprox/seed0", "local.lr x method.mu = 5")),
    ],
)
def test_a_method_that_cannot_work_is_refused_first(
    tmp_path: Path, method: str, told: tuple[str, ...]
) -> None:
    text = (
        MATRIX.split("scenarios:")[0].replace("linear", "mlp") + "scenarios: {skew: }\nmethods:\n  amn:\n  "
    )
    found = plan(write(tmp_path, text + method), "--out", tmp_path / "out")
    with pytest.raises(ConfigError) as caught:
        found.check(plain.communicator())
    has(str(caught.value), *told)
    assert not list(tmp_path.glob("out/*/*/*/result.json"))


def test_methods_that_were_not_tuned_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "methods: {local: {local: {lr: 0.5}}}", "tuned.yaml")
    text = MATRIX.split("scenarios:")[0] + "scenarios: {s: }\ntuned: tuned.yaml\nmethods: {local: , amn: }"
    found = plan(write(tmp_path, text), "--out", tmp_path / "out")
    found.check(plain.communicator())
    assert "no tuned values for amn: the defaults are used" in one_line(capsys.readouterr().err)


def test_runs_on_other_data_are_not_paired(done: Done, tmp_path: Path) -> None:
    """Scenarios of the same name from two comparisons."""
    for name, size in (("a", 16), ("b", 24)):
        shutil.copytree(done.out[1] / "iid" / "amn" / "seed0", tmp_path / name)
        path = tmp_path / name / "result.json"
        found = json.loads(path.read_text())
        found["config"]["data"]["train_per_client"] = size
        path.write_text(json.dumps({**found, "seed": size, "cell": {**found["cell"], "seed": size}}))
    line = refused(tmp_path)
    has(line, "a and ", "b are both iid", "data.train_per_client = 16 there and 24 here")


def test_trials_may_be_listed_one_by_one(tmp_path: Path) -> None:
    listed = "  fedamp: [{method: {alpha: 0.5, lam: 0.5}}, {method: {alpha: 2.0}, local: {lr: 0.01}}]\n"
    found = plan(write(tmp_path, TUNING + listed), "--out", tmp_path / "out").matrix
    configs = [cell.config for cell in found.cells if cell.label == "fedamp"]
    assert [(c.method.alpha, c.method.lam, c.local.lr) for c in configs] == [
        (0.5, 0.5, 0.05),
        (2.0, 1.0, 0.01),
    ]


@pytest.mark.parametrize(
    ("where", "text", "told"),
    [
        ("keys", "  rounds: 2\n  baselines: local", "keys: baselines"),
        ("keys", "  rounds: 2\n  seed: 3", "keys: seed"),
        ("scenarios", "  iid: {data: {labels: iid}, method: {name: local}}", "scenario iid: method.name"),
        ("methods", "  amn: {out: here}", "method amn: out"),
    ],
)
def test_keys_that_a_comparison_sets_itself(tmp_path: Path, where: str, text: str, told: str) -> None:
    head, _, tail = MATRIX.partition(f"{where}:\n")
    line = refused(write(tmp_path, f"{head}{where}:\n{text}\n" + tail.partition("\n")[2]), kind=ConfigError)
    has(line, told, "a comparison sets it itself")
