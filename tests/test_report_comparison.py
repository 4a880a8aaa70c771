"""The report of a comparison: what the page and the figures show, and what is missing."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ready
from running import environment, result
from test_report import Page

from amn_mpi import asked, compare
from amn_mpi.config import leaves
from amn_mpi.report import __main__, comparison, overview, panels, settings, style
from amn_mpi.report.comparison import Comparison, Run
from amn_mpi.report.panels import Point
from amn_mpi.scores import FIGURES as SCORES
from amn_mpi.scores import Board, Score

EVIL = '<script>alert("1")<b>&amp; $x_$'
MATRIX = """
seeds: [0, 1]
keys:
  rounds: 3
  data: {clients: 4, train_per_client: 16, test_per_client: 8, concept: none, cache: CACHE}
  model: {name: linear}
  local: {steps: 2}
scenarios:
  iid: {data: {labels: iid}}
  skew: {data: {labels: dirichlet}}
reference: fedavg_ft
methods:
  amn: {method: {common_rounds: 1}}
  local:
  fedavg_ft: {local: {momentum: 0.5}}
  wild: {method: {name: fedavg}, local: {lr: 1.0e+30}}
"""
METHODS = ("amn", "local", "fedavg_ft", "wild")
CELLS = [f"{s}/{m}/seed{k}" for s in ("iid", "skew") for k in (0, 1) for m in METHODS]
FIGURES = ("critical_difference", "accuracy_bytes", "accuracy_seconds", "curves")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison on 3 ranks that has written its report."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "my.yaml").write_text(MATRIX.replace("CACHE", str(folder / "cache")))
    words = [folder / "my.yaml", "--out", folder / "out", "--logging.report", "true"]
    said = ready.compare(*words, ranks=3)
    assert (said.returncode, said.stderr) == (0, "")
    assert f"report in {folder / 'out' / 'report.html'}" in said.stdout
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done / "out", tmp_path / "out"))


def mean(folder: Path, scenario: str, label: str, *keys: str) -> float:
    """Over both seeds, straight from result.json."""
    values = []
    for seed in (0, 1):
        found = result(folder / scenario / label / f"seed{seed}")
        for key in keys:
            found = found[key]
        values.append(found)
    return float(np.mean(values))


# ---- what is shown


def test_the_page_is_whole_and_has_the_numbers(done: Path) -> None:
    page = Page((done / "out" / "report.html").read_text())
    assert page.open == [] and page.count["script"] == 0 and page.count["svg"] == 2 * len(FIGURES)
    assert len(page.ids) == len(set(page.ids))
    assert page.addresses and all(a.startswith(("data:", "#")) for a in page.addresses)
    text = "".join(page.text)
    for scenario in ("iid", "skew"):
        for label in METHODS[:3]:
            for key in ("mean_last5", "best_accuracy", "worst10"):
                values = [result(done / "out" / scenario / label / f"seed{k}")[key] for k in (0, 1)]
                assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text, (label, key)
    for told in (
        "16 of 16",
        "diverged: wild in iid, wild in skew",
        "N = 4 blocks",
        "CD = 2.35",
        "data.labels = iid",
    ):
        assert told in text, told
    assert "local.momentum = 0.5" in text and "Difference to fedavg_ft in points" in text
    files = sorted(path.name for path in (done / "out" / "figures").iterdir())
    assert files == sorted(f"{name}.{kind}" for name in FIGURES for kind in ("pdf", "png"))
    assert len(list((done / "out").rglob("report.html"))) == 1, "no run writes its own"


def test_figures_show_the_runs(done: Path) -> None:
    found = comparison.read(done / "out")
    for scenario in ("iid", "skew"):
        listed = {point.label: point for point in panels.points(found, scenario, "seconds")}
        assert list(listed) == list(METHODS[:3])
        for label, point in listed.items():
            assert math.isclose(point.accuracy, mean(done / "out", scenario, label, "mean_last5"))
            spent = mean(done / "out", scenario, label, "seconds", "mean", "train")
            assert math.isclose(point.cost, 3 * spent)
            lines = (done / "out" / scenario / label / "seed1" / "metrics.jsonl").read_text().splitlines()
            last = [result(done / "out" / scenario / label / f"seed{k}")["mean_accuracy"] for k in (0, 1)]
            curve = panels.curve(found, scenario, label)
            assert list(curve) == [json.loads(line)["round"] for line in lines] == [1, 2, 3]
            assert math.isclose(curve[3], np.mean(last))
        sent = result(done / "out" / scenario / "amn" / "seed0")["bytes_sent"]
        (amn,) = [run for run in found.of(scenario, "amn") if run.score.seed == 0]
        assert amn.sent == sum(sent.values()) - sent["checkpoint"] > 0
    with style.look(style.WIDE):
        drawn = panels.curves(found, style.WIDE)
        assert drawn is not None and [len(ax.lines) for ax in drawn.axes] == [3, 3]


def test_curves_of_other_lengths_end_together() -> None:
    """pFedHN's schedule has one client a round, and so many rounds more."""
    runs = {}
    for label, curve in (("a", {1: 10.0, 30: 20.0, 60: 30.0}), ("b", {160: 5.0, 960: 15.0, 1920: 25.0})):
        score = Score("s", label, 0, "local", dict.fromkeys(SCORES, 30.0), curve=curve)
        runs[label] = comparison.Run(score, {}, {}, 1, curve=curve)
    board = Board([run.score for run in runs.values()], "a")
    found = comparison.Comparison(Path("x"), board, runs, {}, [])
    with style.look(style.WIDE):
        drawn = panels.curves(found, style.WIDE)
        assert drawn is not None
        (axes,) = drawn.axes
        assert [list(line.get_xdata()) for line in axes.lines] == [[1, 30, 60], [5, 30, 60]]
    assert panels.squeezed(found) == {"b": 1920}
    assert overview._of_curves(found).endswith(" Drawn to the same length: b (1,920 rounds).")
    assert "Drawn" not in overview._of_curves(replace(found, board=Board([runs["a"].score], "a")))


def test_pareto_front_and_the_room_of_the_axis() -> None:
    listed = [Point("a", 1, 50), Point("b", 2, 49), Point("c", 2, 60), Point("d", 3, 60), Point("e", 9, 61)]
    assert [point.label for point in panels.front(listed)] == ["a", "c", "e"]
    assert panels.floor([80, 81, 82, 83, 84, 10]) == 81 - 3
    assert panels.floor([80, 81, 82, 83, 84, 79]) == 79 and panels.floor([10, 80, 81]) == 10


def crowd(count: int) -> Comparison:
    """So many methods in two groups of nearly the same cost and accuracy."""
    noise = np.random.default_rng(3)
    runs = {}
    for k in range(count):
        name, accuracy = f"some_method_{k}", float(80 + 2 * noise.random())
        score = Score("all", name, 0, "fedavg", {"mean_last5": accuracy})
        runs[f"all/{name}/seed0"] = Run(score, {}, {}, 3, 1e7 * (1 + 20 * (k % 2)), 5.0 + k % 3)
    return Comparison(Path("."), Board([run.score for run in runs.values()], ""), runs, {}, [])


@pytest.mark.parametrize("width", [style.WIDE, style.NARROW], ids=lambda width: width.name)
def test_names_do_not_cover_each_other(width: style.Width) -> None:
    found = crowd(10)
    for cost in panels.COSTS:
        with style.look(width):
            drawn = panels.against(found, cost, width)
            assert drawn is not None
            drawn.draw_without_rendering()
            (ax,) = drawn.axes
            boxes = [text.get_window_extent() for text in ax.texts]
            assert sorted(text.get_text() for text in ax.texts) == sorted(found.board.labels)
            for k, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[:k]), ax.texts[k].get_text()
                assert ax.bbox.padded(2).contains(box.x0, box.y0) and ax.bbox.padded(2).contains(
                    box.x1, box.y1
                )


def test_each_key_is_told_once_where_it_belongs(done: Path) -> None:
    runs = comparison.read(done / "out").runs.values()
    split = settings.split([(run.score, run.config) for run in runs])
    assert split.scenarios == {"iid": "data.labels = iid", "skew": "data.labels = dirichlet"}
    assert "method.common_rounds = 1" in split.labels["amn"] and "local.lr = 1e+30" in split.labels["wild"]
    assert split.common["rounds"] == "3" and split.common["data.clients"] == "4"
    keys = {key for run in runs for key in run.config} - set(settings.OWN)
    texts = [*split.scenarios.values(), *split.labels.values()]
    told = {part.partition(" = ")[0] for text in texts for part in text.split(", ")}
    for key in keys:
        assert (key in split.common) != (key in told), key
    s = [Score(a, b, 0, "amn", {}) for a in "xy" for b in "mn"]
    mixed = settings.split(zip(s, [{"lr": 1}, {"lr": 2}, {"lr": 2}, {"lr": 2}]))
    assert mixed.common == {"lr": "1 or 2"}


def test_what_a_user_has_named_is_text(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / asked.NAME).unlink()
    shutil.rmtree(copy / "iid" / "wild")
    shutil.rmtree(copy / "skew")
    for label in METHODS[:3]:
        shutil.move(copy / "iid" / label, copy / "iid" / (EVIL + label))
    shutil.move(copy / "iid", copy / EVIL)
    for path in (copy / EVIL).rglob("result.json"):
        found = json.loads(path.read_text())
        found["cell"]["scenario"] = found["config"]["data"]["name"] = found["versions"]["mpi"] = EVIL
        found["cell"]["label"] = path.parent.parent.name
        path.write_text(json.dumps(found))
    (copy / EVIL / (EVIL + "amn") / "seed1" / "result.json").write_text("{" + EVIL)
    assert __main__.main([str(copy)]) == 0, capsys.readouterr()
    page = Page((copy / "report.html").read_text())
    assert page.count["script"] == page.count["b"] == 0 and page.open == []
    assert "".join(page.text).count(EVIL) >= 20


def test_a_report_needs_no_torch(done: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from amn_mpi.report import comparison, overview\n"
        "comparison.read(Path(sys.argv[1])); print({'torch', 'h5py', 'mpi4py'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", code, str(done / "out")]
    told = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60)
    assert (told.stdout, told.stderr) == ("set()\n", "")


# ---- what is missing


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    status = __main__.main(list(map(str, args)))
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("amn_mpi: "), err
    return status, err


def test_missing_runs_are_named_and_the_others_reported(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / CELLS[0] / "result.json").unlink()
    shutil.rmtree(copy / CELLS[5])
    (copy / CELLS[8] / "result.json").write_text('{"config": ')
    found = result(copy / CELLS[9])
    found["bytes_sent"] = "many"
    (copy / CELLS[9] / "result.json").write_text(json.dumps(found))
    shutil.rmtree(copy / CELLS[10])
    shutil.copytree(copy / CELLS[14], copy / CELLS[10])
    assert __main__.main([str(copy)]) == 0
    out, err = capsys.readouterr()
    line = (
        f"{copy}: 5 of 16 runs are missing: iid/amn/seed0 (not finished, 3 rounds are there), "
        "iid/local/seed1 (not run), skew/amn/seed0 (damaged: result.json: not the result of a run: "
        "JSONDecodeError "
    )
    assert err.startswith(f"amn_mpi: warning: {line}") and err.count("\n") == 1
    assert "skew/local/seed0 (damaged: result.json: not the result of a run: AttributeError " in err
    assert "skew/fedavg_ft/seed0 (damaged: holds skew/fedavg_ft/seed1); the report holds what is there" in err
    page = Page((copy / "report.html").read_text())
    text = "".join(page.text)
    assert "5 of 16 runs are missing: iid/amn/seed0" in text and "11 of 16" in text
    assert (
        page.count["svg"] == 2 * 3 and "Not drawn: it takes 3 methods that have all run in 2 blocks" in text
    )
    assert not (copy / "figures" / "critical_difference.pdf").exists(), "of the earlier report"
    assert f"{result(copy / 'skew/amn/seed1')['mean_last5']:.1f}" in text
    shutil.rmtree(copy / "figures")


def test_a_run_without_its_rounds_has_no_curve(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / CELLS[1] / "metrics.jsonl").write_text("no\nline")
    (copy / CELLS[8] / "metrics.jsonl").write_text("no\nline")
    (copy / CELLS[8] / "result.json").unlink()
    found = comparison.read(copy)
    err = capsys.readouterr().err
    assert f"no curve, as metrics.jsonl is missing or damaged: {CELLS[1]}\n" in err
    assert found.missing == {CELLS[8]: "damaged: metrics.jsonl: line 1 is not that of a round"}
    whole = result(copy / CELLS[5])["mean_accuracy"]
    assert panels.curve(found, "iid", "local")[3] == whole, "of the other seed"


def test_a_comparison_without_a_finished_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in copy.rglob("result.json"):
        path.unlink()
    (copy / "report.html").unlink()
    status, line = refused(capsys, copy)
    assert (
        status == 1 and f"{copy}: nothing to report: none of its 16 runs is finished: iid/amn/seed0" in line
    )
    assert "and 6 more" in line
    (copy / asked.NAME).unlink()
    status, line = refused(capsys, copy)
    assert status == 1 and "none of its 16 runs is finished" in line
    assert not (copy / "report.html").exists()


def test_an_older_comparison_has_kept_no_list(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / asked.NAME).unlink()
    assert sorted(comparison.read(copy).runs) == sorted(CELLS) and capsys.readouterr().err == ""
    shutil.rmtree(copy / CELLS[3])
    found = comparison.read(copy)
    assert found.missing == {CELLS[3]: "not run"}
    assert found.board.reference == "amn"
    (copy / asked.NAME).write_text('{"runs": ["../../etc/seed0"], "reference": "amn"}')
    capsys.readouterr()
    assert comparison.read(copy).missing == {CELLS[3]: "not run"}
    assert "comparison.json: left out: ValueError" in capsys.readouterr().err


def test_wrong_folders_and_words(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for status, told, args in (
        (2, "--local: is for the report of a run", [done / "out", "--local", done / "out" / CELLS[1]]),
        (1, "holds no run", [done / "out" / "iid"]),
        (1, "cannot be written", [done / "out", "--out", tmp_path / "file"]),
        (2, "give one run folder, not 2", [done / "out", done / "out"]),
    ):
        found, line = refused(capsys, *args)
        assert found == status and told in line, line


def plan(*args: object) -> compare.Plan:
    found = compare._plan(list(map(str, args)))
    assert found is not None
    return found


def test_later_commands_add_to_what_is_asked_for(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan(done / "my.yaml", "--out", out, "--methods", "local", "--scenarios", "skew", "--seeds", 0)
    assert asked.read(out) == asked.Asked("fedavg_ft", ["skew/local/seed0"], seeds=[0])
    plan(done / "my.yaml", "--out", out, "--methods", "amn", "--seeds", 7, "--reference", "amn")
    every = ["iid/amn/seed7", "skew/local/seed0", "skew/amn/seed7"]
    assert asked.read(out) == asked.Asked("amn", every, seeds=[7])
    shutil.rmtree(out)
    plan(done / "my.yaml", "--out", out)
    assert asked.read(out) == asked.Asked("fedavg_ft", CELLS, seeds=[0, 1])
    fewer = MATRIX.replace("  local:\n", "").replace("CACHE", str(done / "cache"))
    (tmp_path / "fewer.yaml").write_text(fewer)
    plan(tmp_path / "fewer.yaml", "--out", out, "--seeds", 0)
    known = asked.read(out)
    assert known is not None and known.runs == [name for name in CELLS if "local" not in name]


def test_seeds_that_the_last_command_left_out(
    done: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of development and those that judge are no one sample: not in its tables, not in the report."""
    plan(done / "my.yaml", "--out", copy, "--seeds", 1)
    capsys.readouterr()
    found = comparison.read(copy)
    assert {run.score.seed for run in found.runs.values()} == {1} and len(found.runs) == 8
    told = "8 runs with other seeds than 1, which the last command asked for, are left out, as in its tables"
    assert told in capsys.readouterr().err and found.notes == [told] and found.missing == {}
    plan(done / "my.yaml", "--out", copy)
    assert len(comparison.read(copy).runs) == 16


def test_runs_with_other_keys_are_left_out(
    done: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they are in the tables; and a report on request counts as no other key."""
    text = MATRIX.replace("momentum: 0.5", "momentum: 0.25").replace("CACHE", str(done / "cache"))
    (tmp_path / "my.yaml").write_text(text)
    words = (tmp_path / "my.yaml", "--out", copy, "--methods", "amn,local,wild")
    quiet = plan(*words)
    assert quiet.todo == []
    (copy / "report.html").unlink()
    quiet.picture()
    assert not (copy / "report.html").exists()
    del quiet
    plan(*words, "--logging.report", "true").picture()
    out, err = capsys.readouterr()
    assert f"report in {copy / 'report.html'}" in out
    assert (
        "4 of 16 runs are missing: iid/fedavg_ft/seed0 (run with other keys)" in err and err.count("\n") == 1
    )
    for path in copy.rglob("result.json"):
        path.write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        from amn_mpi.report import at_end

        at_end(copy)
    err = capsys.readouterr().err
    assert err == "amn_mpi: warning: no report: the report needs matplotlib: pip install '.[report]'\n"


def test_unlike_runs_are_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(copy / CELLS[1])
    found["config"]["data"]["alpha"], found["ranks"] = 99.0, 5
    (copy / CELLS[1] / "result.json").write_text(json.dumps(found))
    assert leaves(found["config"])["data.alpha"] == 99.0
    first, second = comparison.read(copy).notes
    assert "are both iid, but data.alpha" in first and "on 3, 5 ranks: their bytes" in second
    assert capsys.readouterr().err.count("amn_mpi: warning: ") == 2
