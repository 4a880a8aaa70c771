"""What is told of a run while it goes on: callbacks, TensorBoard, the live view."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
from running import REPOSITORY, one_line, result, run

from amn_mpi import callbacks, live, progress, tensorboard
from amn_mpi.config import Logging
from amn_mpi.errors import ConfigError

SMALL = ("--data.clients", 4, "--local.epochs", 1, "--progress", "off", "--method.common_rounds", 1)
EXAMPLE = REPOSITORY / "examples" / "own_callback.py:Table"
OWN = """
import json
from pathlib import Path
from amn_mpi.callbacks import Callback

class Diary(Callback):
    def begin(self, config, folder, facts):
        self.file = open(folder / "diary.jsonl", "a")
        self.note("begin", config["rounds"], facts)
        return 0
    def note(self, *what):
        print(json.dumps(what), file=self.file, flush=True)
    def round(self, row, attention):
        self.note("round", row, None if attention is None else list(attention.shape))
    def end(self, result):
        self.note("end", result["models_sha256"], sorted(result["baselines"]))
    def failed(self, reason):
        self.note("failed", reason)
    def close(self):
        self.note("close")

class Clumsy(Callback):
    def round(self, row, attention):
        if row["round"] == 2:
            raise ValueError("no room\\nleft")
    def end(self, result):
        Path("/nonexistent/never").write_text("it was switched off")

class Broken(Callback):
    def __init__(self):
        raise OSError("no server")

class Late(Callback):
    def end(self, result):
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)

class Vandal(Callback):
    def begin(self, config, folder, facts):
        config.clear(), facts["models"].clear(), facts["layers"].clear()
        return 0
    def round(self, row, attention):
        row["models"].clear(), row["deciles"].clear(), row.clear()
        if attention is not None:
            attention[:] = float("nan")
    def end(self, result):
        result["models"].clear(), result["baselines"].clear()
"""


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(OWN)
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- a run and its continuation, on three ranks and on one


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, own: Path) -> tuple[Path, str]:
    """Four rounds on three ranks, then two more on one; the folder, and what was said the first time."""
    folder = tmp_path_factory.mktemp("told")
    what = (*SMALL, "--out", folder / "out", "--evaluate.every", 1)
    what += ("--logging.tensorboard", "true", "--data.cache", folder / "cache")
    first = (
        "--rounds",
        4,
        "--baselines",
        "local",
        "--logging.callbacks",
        f"{own}:Vandal,{own}:Diary,{own}:Clumsy,{EXAMPLE}",
    )
    done = run(*what, *first, ranks=3)
    assert done.returncode == 0, done.stderr
    again = ("--rounds", 6, "--resume", "auto", "--logging.callbacks", f"{own}:Diary,{EXAMPLE}")
    plain.here(*what, *again)
    return folder / "out", done.stderr


def test_a_callback_is_told_everything_in_order(told: tuple[Path, str]) -> None:
    notes = [json.loads(line) for line in (told[0] / "diary.jsonl").read_text().splitlines()]
    one, two = ["begin", *["round"] * 4, "end", "close"], ["begin", *["round"] * 6, "end", "close"]
    assert [note[0] for note in notes] == one + two
    rows = rows_of(told[0])
    assert [note[1] for note in notes[1:5]] == rows[:4], "its rows are those of metrics.jsonl"
    assert [note[1] for note in notes[8:14]] == rows, "it knew none: all are handed over again"
    assert [note[2] for note in notes[8:14]] == [None] * 4 + [[1, 4, 4]] * 2
    begun, resumed = notes[0], notes[7]
    assert (begun[1], resumed[1]) == (4, 6)
    assert (begun[2]["done"], resumed[2]["done"]) == (0, 4)
    assert (begun[2]["ranks"], resumed[2]["ranks"]) == (3, 1)
    assert begun[2]["layers"] == ["fc1", "fc2"] and begun[2]["models"] == ["local", "hybrid", "fitted"]
    assert notes[5][2] == ["local"] and notes[12 + 2][1] == result(told[0])["models_sha256"]


def test_the_example_of_the_documentation(told: tuple[Path, str]) -> None:
    """A table that has every round once, although the run was resumed."""
    lines = (told[0] / "accuracy.csv").read_text().splitlines()
    models = [[round(m["mean_accuracy"], 2) for m in row["models"].values()] for row in rows_of(told[0])]
    assert lines[0] == "round,local,hybrid,fitted" and len(lines) == 7
    told_of = [[float(cell) for cell in line.split(",")] for line in lines[1:]]
    assert told_of == [[t, *means] for t, means in enumerate(models, 1)]


def test_a_callback_that_raises_is_switched_off_with_one_line(told: tuple[Path, str], own: Path) -> None:
    line = one_line(told[1])
    assert line == (
        f"amn_mpi: warning: callback {own}:Clumsy: round raised ValueError: no room left; "
        "it is switched off, the run goes on"
    )


def test_tensorboard_reads_what_metrics_say(told: tuple[Path, str]) -> None:
    rows, found = rows_of(told[0]), events(told[0])
    assert len(rows) == 6

    def curve(tag: str) -> list[tuple[int, float]]:
        return [(s.step, s.value) for s in found.Scalars(tag)]

    def of(values: list[float]) -> Any:
        return [(step, pytest.approx(value, rel=1e-6)) for step, value in enumerate(values, 1)]

    for model in ("local", "hybrid", "fitted"):
        assert curve(f"accuracy/{model}") == of([row["models"][model]["mean_accuracy"] for row in rows])
        assert curve(f"worst_tenth/{model}") == of([row["models"][model]["worst10"] for row in rows])
    for k, layer in enumerate(("fc1", "fc2")):
        assert curve(f"gate/{layer}") == of([row["gate"][k] for row in rows])
        assert curve(f"evidence/{layer}") == of([row["evidence"][k] for row in rows])
    assert curve("effective_neighbours/all_layers") == of([row["effective_neighbours"][0] for row in rows])
    assert curve("round/seconds") == of([row["seconds"] for row in rows])
    assert [step for step, _ in curve("baselines/local")] == [4]
    config = found.Tensors("config")[-1].tensor_proto.string_val[0].decode()
    assert "rounds: 6" in config
    assert [image.step for image in found.Images("attention")] == [1, 2, 3, 4, 5, 6]


def test_the_attention_is_a_picture(told: tuple[Path, str]) -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(events(told[0]).Images("attention")[-1].encoded_image_string))
    side = 60  # pixels of one of four clients in 240
    assert picture.size == (4 * side, tensorboard.HEAD + 4 * side), "one attention for all layers"
    for client in range(4):
        at = (client * side + 5, tensorboard.HEAD + client * side + 5)
        assert picture.getpixel(at) == tensorboard.PALE, "nobody listens to itself, in any order"


def coloured(share: float) -> tuple[int, ...]:
    return tuple(round(p + share * (d - p)) for p, d in zip(tensorboard.PALE, tensorboard.DARK))


def test_a_picture_by_hand() -> None:
    """Even clients listen to even ones, odd to odd ones: two blocks; one alone gets far more."""
    even = np.arange(150) % 2
    attention = np.where(even[:, None] == even, 0.4, 0.1)[None]
    attention[0, 3, 7] = 5.0
    picture = tensorboard.drawn(attention, ["fc1"])
    assert picture.size == (300, 300 + tensorboard.HEAD)
    assert {picture.getpixel((x, 8)) for x in range(40)} != {tensorboard.WHITE}, "the layer's name"
    where = [(10, 10), (140, 10), (10, 140), (140, 140), (160, 160), (290, 290), (160, 290)]
    assert {picture.getpixel((x, tensorboard.HEAD + y)) for x, y in where} == {tensorboard.DARK}
    where = [(160, 10), (290, 140), (10, 160), (140, 290)]
    assert {picture.getpixel((x, tensorboard.HEAD + y)) for x, y in where} == {coloured(0.25)}


def test_a_picture_of_many_clients_and_one_of_nothing() -> None:
    picture = tensorboard.drawn(np.zeros((2, 900, 900)), ["a", "b"])
    assert picture.size == (2 * 2 * 300 + tensorboard.GAP, 600 + tensorboard.HEAD)
    means = tensorboard._pooled(np.arange(25.0).reshape(1, 5, 5), 2)
    assert means[0].tolist() == [[3.0, 5.0, 6.5], [13.0, 15.0, 16.5], [20.5, 22.5, 24.0]]


def test_rounds_after_the_last_checkpoint_are_not_shown_twice(tmp_path: Path) -> None:
    """A start that was killed has written more rounds than its checkpoint holds."""
    facts = {"done": 0, "rounds": 5, "layers": []}
    for done, rounds, value in ((0, (1, 2, 3, 4), 10.0), (2, (3, 4, 5), 20.0)):
        board = tensorboard.TensorBoard()
        assert board.begin({}, tmp_path, {**facts, "done": done}) == done
        for t in rounds:
            board.round({"round": t, "models": {"m": {"mean_accuracy": value + t, "worst10": 0.0}}}, None)
        board.close()
    curve = [(s.step, s.value) for s in events(tmp_path).Scalars("accuracy/m")]
    assert curve == [(1, 11), (2, 12), (3, 23), (4, 24), (5, 25)]


# ---- what cannot be


def test_a_stop_is_told(tmp_path: Path, own: Path) -> None:
    made = callbacks.Callbacks(Logging(callbacks=f"{own}:Diary"))
    made.begin({"rounds": 3}, tmp_path, {"done": 0}, [])
    made.failed("stopped by SIGTERM")
    made.end({})  # nobody is left to be told
    notes = [json.loads(line) for line in (tmp_path / "diary.jsonl").read_text().splitlines()]
    assert notes[1:] == [["failed", "stopped by SIGTERM"], ["close"]]


def test_a_stop_after_the_last_round_finds_nothing_to_stop(tmp_path: Path, own: Path) -> None:
    """All is kept, so the run ends as any other: it is neither unfinished nor to be submitted again."""
    keys = (*SMALL, "--rounds", 1, "--logging.callbacks", f"{own}:Late", "--logging.report", "true")
    done = run(*keys, "--out", tmp_path / "out", "--data.cache", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "result.json").exists() and (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nope", "nope is unknown; valid are tensorboard, wandb, or FILE.py:NAME"),
        ("FILE", "is unknown; valid are tensorboard, wandb, or FILE.py:NAME"),
        ("FILE:No", "the file has no No; it has Diary, Clumsy, Broken, Late, Vandal"),
        ("FILE:Path", "is no subclass of amn_mpi.callbacks.Callback"),
        ("FILE:Broken", "cannot be made: line 31: OSError: no server"),
        ("/nonexistent/x.py:A", "cannot read /nonexistent/x.py: No such file or directory"),
    ],
)
def test_what_is_no_callback_is_refused(given: str, says: str, own: Path) -> None:
    given = given.replace("FILE", str(own))
    with pytest.raises(ConfigError) as refusal:
        callbacks.Callbacks(Logging(callbacks=given))
    assert says in str(refusal.value) and str(refusal.value).startswith(f"logging.callbacks = {given}: ")


def test_a_missing_package_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    with pytest.raises(ConfigError) as refusal:
        plain.here(*SMALL, "--logging.tensorboard", "true", "--out", tmp_path / "out")
    assert str(refusal.value) == (
        "logging.tensorboard = true: needs the package tensorboard: pip install '.[tensorboard]'"
    )
    assert not (tmp_path / "out").exists()


# ---- the live view


def view_of(columns: int) -> live.View:
    """In the third round of a resumed run."""
    view = live.View(8, columns)
    view.known([{"round": 1, "mean_accuracy": 70.0}], {"start": 9.0, "wait": 1.0})
    second = {"round": 2, "mean_accuracy": 60.0}
    view.score(second)
    view.add("amn", second, {"start": 9.5, "wait": 3.0, "server": 1.0}, 2.0, 100.4)
    return view


def test_the_live_view_by_hand() -> None:
    view = view_of(80)
    assert view.lines[0] == f"amn  round 2/8  {'━' * 6}{'╌' * 18}  1 min 40 s left"
    assert view.lines[1] == "accuracy 60.00 %  best 70.00 % (round 1)"
    assert view.lines[2] == "2.00 s a round: waiting for clients 2, server 1", "not what came before it"
    phases = {"start": 9.5, "wait": 3.25, "server": 1.5, "evaluate": 0.001}
    row = {"round": 3, "turn_seconds": {"mean": 0.2, "max": 0.5}, "diverged": [4, 7]}
    view.add("amn", row, phases, 0.75, 7300.0)
    assert view.lines[0].endswith("  2 h 1 min left")
    assert view.lines[1] == "accuracy 60.00 % (round 2)  best 70.00 % (round 1)"
    assert view.lines[2] == "0.75 s a round: server 0.5, waiting for clients 0.25"
    assert view.lines[3] == "slowest client 0.5 s, 2.5 times the mean: a straggler"
    assert view.lines[4] == "diverged: client 4, 7"


@pytest.mark.parametrize(
    ("mean", "longest", "seconds"),
    [(0.4, 0.5, 1.0), (0.004, 0.04, 0.05), (0.02, 0.06, 1.0)],
    ids=["hardly slower", "too short to tell", "nobody waits for it"],
)
def test_who_is_no_straggler(mean: float, longest: float, seconds: float) -> None:
    (line,) = live.slowest({"turn_seconds": {"mean": mean, "max": longest}}, seconds)
    assert "".join(line).endswith(" times the mean")


def test_the_live_view_in_40_columns() -> None:
    view = view_of(40)
    turns = {"turn_seconds": {"mean": 0.2, "max": 0.5}, "diverged": list(range(100, 112))}
    phases = {"wait": 3.25, "server": 1.5, "exchange": 0.125, "evaluate": 0.25}
    view.add("amn", {"round": 4, **turns}, phases, 0.75, 59.0)
    assert view.lines == [
        f"amn  round 4/8  {'━' * 3}{'╌' * 3}  59 s left",
        "accuracy 60.00 % (round 2)",
        "  best 70.00 % (round 1)",
        "0.75 s a round: server 0.5,",
        "  waiting for clients 0.25,",
        "  evaluate 0.25, exchange 0.12",
        "slowest client 0.5 s,",
        "  2.5 times the mean: a straggler",
        "diverged: client 100, 101, 102, 103,",
        "  104, 105, 106, 107 and 4 more",
    ]


def test_the_time_left_counts_rounds_alone() -> None:
    """Not what went before the first, and the first apart: much is done for the first time."""
    pace = progress.Pace()
    assert pace.after(1000.0, 4.0) == 4.0
    assert pace.after(1002.0, 2.0) == 2.0
    assert pace.after(1006.0, 4.0) == 3.0


@pytest.mark.parametrize(
    ("rounds", "seconds", "lines"),
    [(1_000, 1e-3, 1), (10_000, 0.18, 157), (10_000, 8.64, 475), (86_400, 1.0, 547), (100, 900.0, 100)],
)
def test_a_log_has_few_lines(rounds: int, seconds: float, lines: int) -> None:
    """Figures of a simulation of the rule; without it 10,000 rounds of 8.64 s had 5,000 lines."""
    pace, told = progress.Pace(), 0
    for t in range(rounds):
        pace.after(1e6 + t * seconds, seconds)
        if pace.due():
            pace.told()
            told += 1
    assert told == pytest.approx(lines, abs=2)


def test_a_log_has_plain_lines(told: tuple[Path, str], tmp_path: Path) -> None:
    """A run that goes on, with evaluations that are rare: the last accuracy, and when it was."""
    words = [w for w in SMALL if w not in ("--progress", "off")]
    cache = ("--data.cache", told[0].parent / "cache")
    done = run(*words, *cache, "--rounds", 9, "--evaluate.every", 20, "--out", tmp_path / "out")
    first, last = done.stdout.splitlines()[:2]
    assert re.fullmatch(r"amn  round 1/9  [\d.]+ s a round  \d+ s left", first)
    assert re.fullmatch(r"amn  round 9/9  accuracy [\d.]+ %  [\d.]+ s a round", last)
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout


def test_the_live_view_is_drawn_by_a_run(tmp_path: Path) -> None:
    words = [w for w in SMALL if w not in ("--progress", "off")]
    done = run(*words, "--rounds", 3, "--progress", "rich", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "amn  round 3/3" in done.stdout and "best " in done.stdout and "slowest client" in done.stdout
