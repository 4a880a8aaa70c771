"""The report of a run: what the run keeps for it, what the page and the figures show, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ready import run_each
from running import result

from amn_mpi import config, methods, snapshots
from amn_mpi.report import __main__, figures, heat, order, read, style

CLIENTS, ROUNDS = 6, 7
EVIL = '</script><script>alert("1")</script>&amp; $x_$'


class Page(HTMLParser):
    """Counts the elements of a page and keeps its text and addresses; fails where tags do not match."""

    EMPTY = ("meta", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.open += [] if tag in self.EMPTY else [tag]
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            raise ValueError(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """amn with a report, and local on the same clients, and on others."""
    folder = tmp_path_factory.mktemp("report")
    shared = ["--data.clients", CLIENTS, "--rounds", ROUNDS, "--progress", "off", "--data.labels", "groups"]
    told = run_each(
        [
            [*shared, "--out", folder / "amn", "--logging.report", "true", "--logging.attention", 3],
            [*shared, "--out", folder / "local", "--method.name", "local"],
            [*shared, "--out", folder / "other", "--method.name", "local", "--seed", 1],
        ],
        folder,
        ranks=3,
    )
    assert told.returncode == 0, told.stderr
    assert told.stderr == "" and f"report in {folder / 'amn' / 'report.html'}" in told.stdout
    return folder


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    for name in ("result.json", "metrics.jsonl", "config.yaml", "attention"):
        source = runs / "amn" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path


def change(folder: Path, **values: object) -> None:
    found = result(folder)
    (folder / "result.json").write_text(json.dumps({**found, **values}))


# ---- what a run keeps


def test_rounds_are_evenly_spaced_and_the_last_is_among_them() -> None:
    assert snapshots.spaced(40, 10) == set(range(4, 41, 4))
    assert snapshots.spaced(7, 3) == {3, 5, 7}
    assert snapshots.spaced(3, 10) == {1, 2, 3}
    assert snapshots.spaced(9, 1) == {9}
    assert snapshots.spaced(9, 0) == set()


def test_attention_is_kept(runs: Path) -> None:
    kept = snapshots.kept(runs / "amn")
    assert [path.name for path in kept.values()] == ["00003.npy", "00005.npy", "00007.npy"]
    lines = (runs / "amn" / "metrics.jsonl").read_text().splitlines()
    rows = {row["round"]: row for row in map(json.loads, lines)}
    for round, path in kept.items():
        attention = np.load(path)
        assert (attention.dtype, attention.shape) == (np.float16, (1, CLIENTS, CLIENTS))
        assert np.allclose(attention.astype(float).sum(2), 1, atol=0.01)
        width = (1 / (attention.astype(float) ** 2).sum(2)).mean(1)
        assert np.allclose(width, rows[round]["effective_neighbours"], rtol=0.01)
    assert not (runs / "local" / "attention").exists()


def test_later_rounds_go_when_a_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "attention").mkdir()
    for round in (4, 8, 12):
        (tmp_path / "attention" / f"{round:05d}.npy").write_bytes(b"")
    options = methods.options("local")
    plain = {k.name: k.default for k in config.all_keys(options).values()}
    tree: dict[str, object] = {}
    for name, value in plain.items():
        *sections, last = name.split(".")
        inside = tree
        for section in sections:
            inside = inside.setdefault(section, {})  # type: ignore[assignment]
        inside[last] = "local" if name == "method.name" else value
    snapshots.Snapshots(tmp_path, config.build(tree, options)).begin(8)
    assert list(snapshots.kept(tmp_path)) == [4, 8]


def test_result_holds_what_the_figures_need(runs: Path) -> None:
    found = result(runs / "amn")
    counts = np.array(found["per_client"]["train_counts"])
    assert counts.sum(1).tolist() == found["per_client"]["train_samples"]
    assert counts.shape == (CLIENTS, len(found["class_names"])) and found["layers"] == ["fc1", "fc2"]
    last = json.loads((runs / "amn" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["deciles"] == found["deciles"]
    assert np.allclose(last["deciles"][4], np.median(found["per_client"]["accuracy"]))


# ---- what is shown


def test_the_page_is_whole_and_needs_no_network(runs: Path) -> None:
    page = Page((runs / "amn" / "report.html").read_text())
    assert page.open == [] and page.count["script"] == 1
    assert page.count["svg"] == 2 * 7, "each figure at two widths"
    assert len(page.ids) == len(set(page.ids))
    assert page.addresses and all(a.startswith(("data:", "#")) for a in page.addresses)
    ids = set(page.ids)
    assert all(address[1:] in ids for address in page.addresses if address.startswith("#"))
    text = "".join(page.text)
    for told in (f"{result(runs / 'amn')['mean_accuracy']:.2f} %", "local.momentum", "concept 1", "label 3"):
        assert told in text, told
    assert sum(text.count(f'"round": {round}') for round in (3, 5, 7)) == 3, "frames of the slider"


def test_figures_for_a_paper(runs: Path) -> None:
    names = ("accuracy", "clients", "attention", "gate", "classes", "seconds", "traffic")
    folder = runs / "amn" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{name}.{kind}" for name in names for kind in ("pdf", "png")
    )
    for name in names:
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_figures_show_the_run(runs: Path) -> None:
    found = read.run(runs / "amn")
    told = result(runs / "amn")
    rows = [json.loads(line) for line in (runs / "amn" / "metrics.jsonl").read_text().splitlines()]
    with style.look(style.WIDE):
        mean, worst = figures.accuracy(found, style.WIDE).axes[0].lines
        assert mean.get_ydata().tolist() == [row["mean_accuracy"] for row in rows]
        assert worst.get_ydata().tolist() == [row["worst10"] for row in rows]
        alone = read.local(runs / "local", found)
        ax = figures.clients(found, style.WIDE, alone).axes[0]
        heights = [bar.get_height() for bar in ax.patches]
        assert heights == sorted(told["per_client"]["accuracy"])
        dots = next(line for line in ax.lines if line.get_label() == "Local, same client")
        pairs = sorted(zip(told["per_client"]["accuracy"], result(runs / "local")["per_client"]["accuracy"]))
        assert sorted(zip(heights, dots.get_ydata())) == pairs
        heats = heat.attention(found, style.WIDE, order.by_clusters(found.attention[7])).axes
        assert [ax.get_title(loc="left") for ax in heats] == ["all layers"]
        assert found.layer_names(2) == told["layers"] == ["fc1", "fc2"]
        gates = figures.gate(found, style.WIDE).axes[0].lines
        assert [line.get_ydata()[-1] for line in gates] == rows[-1]["gate"]
        ranks = figures.seconds(found, style.WIDE).axes[0].containers
        assert [bar.get_width() for bar in ranks[0]] == list(told["seconds"]["rank0"].values())


def test_clusters_lie_side_by_side() -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 7))
    attention = np.where(groups[:, None] == groups[None, :], 1.0, 0.1)[None].repeat(2, 0)
    attention += np.random.default_rng(1).uniform(0, 0.05, attention.shape)
    found = order.by_clusters(attention)
    assert sorted(found) == list(range(21))
    assert (np.diff(groups[found]) != 0).sum() == 2
    assert order.by_clusters(np.ones((1, 1, 1))).tolist() == [0]


def test_many_clients_are_averaged_and_labels_thinned() -> None:
    matrix = np.arange(900.0**2).reshape(900, 900)
    small = heat.fitted(matrix)
    assert small.shape == (300, 300) and small[2, 5] == matrix[6:9, 15:18].mean()
    assert style.every(range(300), 40) == (list(range(0, 300, 10)), [str(k) for k in range(0, 300, 10)])
    assert style.every(["a"] * 4, 40)[0] == [0, 1, 2, 3]


def test_what_a_user_has_named_is_text(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(copy)
    found["config"]["data"]["name"] = found["config"]["out"] = EVIL
    found["class_names"] = [EVIL] * len(found["class_names"])
    found["layers"] = [EVIL] * 2
    found["versions"]["mpi"] = EVIL
    change(copy, **found)
    assert __main__.main([str(copy)]) == 0, capsys.readouterr()
    page = Page((copy / "report.html").read_text())
    assert page.count["script"] == 1 and page.open == []
    assert "".join(page.text).count(EVIL) >= 4


# ---- what is missing


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    status = __main__.main(list(map(str, args)))
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("amn_mpi: "), err
    return status, err


def test_an_unfinished_run_is_reported_as_far_as_it_went(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "result.json").unlink()
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("\n".join([*lines[:4], lines[4][:40]]))
    assert __main__.main([str(copy)]) == 0
    assert capsys.readouterr().err == (
        f"amn_mpi: warning: {copy}: not finished: 4 of {ROUNDS} rounds; the report holds what is there\n"
    )
    page = Page((copy / "report.html").read_text())
    assert f"not finished: 4 of {ROUNDS} rounds" in page.text
    assert page.count["svg"] == 2 * 3, "accuracy, attention, gate"
    rows = [{k: v for k, v in json.loads(line).items() if k != "mean_accuracy"} for line in lines[:2]]
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    status, told = refused(capsys, copy)
    assert status == 1 and f"not finished: 2 of {ROUNDS} rounds, and none is evaluated" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"rounds": 3', "JSONDecodeError"),
        ("[1, 2]", "TypeError"),
        ('{"config": {}, "rounds": 3}', "KeyError 'per_client'"),
        ('{"diverged": "nan everywhere", "config": {}}', "nothing to report: nan everywhere"),
    ],
)
def test_a_damaged_result(copy: Path, capsys: pytest.CaptureFixture[str], text: str, told: str) -> None:
    (copy / "result.json").write_text(text)
    status, line = refused(capsys, copy)
    assert status == 1 and told in line and str(copy) in line


def test_damaged_attention_is_left_out(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = sorted((copy / "attention").glob("*.npy"))
    there = np.load(kept[-1])
    kept[0].write_bytes(kept[0].read_bytes()[:60])
    (copy / "attention" / "00091.npy").write_bytes(b"PK\3\4" + bytes(60))
    np.savez(copy / "attention" / "00092", there)
    (copy / "attention" / "00092.npz").rename(copy / "attention" / "00092.npy")
    np.save(copy / "attention" / "00093.npy", there[:0])
    (copy / "attention" / "00094.npy").mkdir()
    found = read.run(copy)
    assert list(found.attention) == [int(path.stem) for path in kept[1:]]
    assert capsys.readouterr().err.count(".npy: left out: ") == 5


def test_values_that_no_run_writes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(copy, seconds="long")
    status, line = refused(capsys, copy)
    assert status == 1 and f"{copy}: its files hold what no run writes: AttributeError" in line
    assert not (copy / "report.html").exists()


def test_wrong_folders_and_words(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for status, told, args in (
        (1, "holds no run", [tmp_path]),
        (1, "it holds runs: give one of them", [runs]),
        (1, "no such folder", [tmp_path / "none"]),
        (2, "give one run folder, not 0", []),
        (2, "--lokal: unknown", [runs / "amn", "--lokal", "x"]),
        (2, "--out: a value is missing", [runs / "amn", "--out"]),
        (1, "is a run of amn; valid is one of local", [runs / "local", "--local", runs / "amn"]),
        (1, "seed = 1 there and 0 in", [runs / "amn", "--local", runs / "other"]),
        (1, "cannot be written", [runs / "amn", "--out", tmp_path / "file"]),
        (1, "cannot be written", [runs / "amn", "--out", tmp_path / "out"]),
    ):
        (tmp_path / "out" / "report.html").mkdir(parents=True, exist_ok=True)
        found, line = refused(capsys, *args)
        assert found == status and told in line, line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures", "report.html"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, line = refused(capsys, runs / "amn")
    assert status == 1 and "pip install '.[report]'" in line
