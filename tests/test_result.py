"""What a run tells: result.json, metrics.jsonl, the table, and the lines while it goes on."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import pty
import re
import statistics
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import command, environment, result, run

from amn_mpi import native
from amn_mpi.startup import PARTS

PHASES = {"start", "prepare", "train", "exchange", "server", "evaluate", "checkpoint", "wait"}
ROUNDS, CLIENTS, RANKS = 6, 6, 3
LEARNING = 1  # rounds after the five common ones: gradients go up, too
MODELS = ("local", "hybrid", "fitted")
GIVEN = {"labels": "groups", "label_groups": 3, "sizes": "lognormal", "sigma": 0.5}
ENDING = Path(__file__).resolve().parent / "scripts" / "ending.py"


@dataclass(frozen=True)
class Finished:
    """One run: what it left, what it said, and the seconds rank 0 took until its result was there."""

    result: dict[str, Any]
    rows: list[dict[str, Any]]
    stdout: str
    wall: float


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("result")
    mark, out = folder / "mark", folder / "out"
    args = ["--data.clients", CLIENTS, "--rounds", ROUNDS, "--progress", "plain", "--out", out]
    for name, value in GIVEN.items():
        args += [f"--data.{name}", value]
    env = {"AMN_CACHE": folder / "cache", "HOW": "timed", "MARK": mark}
    ended = run(*args, "--method.common_rounds", 3, ranks=RANKS, env=env, script=ENDING)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    wall = (out / "result.json").stat().st_mtime - float(mark.read_text())
    return Finished(result(out), rows, ended.stdout, wall)


# ---- result.json: where the time went


def test_seconds_by_phase(done: Finished) -> None:
    seconds = done.result["seconds"]
    for who in ("rank0", "mean", "max"):
        assert set(seconds[who]) == PHASES
        assert all(value >= 0 for value in seconds[who].values()), seconds[who]
    for phase in PHASES:
        assert seconds["max"][phase] >= max(seconds["rank0"][phase], seconds["mean"][phase] - 1e-4)
    assert seconds["mean"]["train"] > 0
    assert seconds["rank0"]["train"] < 0.3 * seconds["max"]["train"], "rank 0 trains nobody"
    assert seconds["rank0"]["server"] == seconds["max"]["server"] > 0
    assert seconds["mean"]["evaluate"] > 0


def test_phases_add_up_to_the_wall_time(done: Finished) -> None:
    told = sum(done.result["seconds"]["rank0"].values())
    assert abs(done.wall - told) < 0.2 * done.wall + 0.5, f"{told} of {done.wall} s"


def test_the_start_by_part(done: Finished) -> None:
    """From the launcher to the first step: finer than the phases, and from an earlier moment."""
    seconds, phases = done.result["start_seconds"], done.result["seconds"]["rank0"]
    assert set(seconds["rank0"]) == {*PARTS, "total"}
    assert seconds["rank0"]["total"] == pytest.approx(sum(seconds["rank0"][p] for p in PARTS), abs=1e-2)
    assert min(seconds["mean"][part] for part in ("interpreter", "modules", "mpi", "torch", "session")) > 0
    assert seconds["rank0"]["data"] == seconds["max"]["data"] > 0, "rank 0 alone prepares it"
    mine = seconds["rank0"]["total"] - seconds["rank0"]["launch"] - seconds["rank0"]["interpreter"]
    assert phases["start"] + phases["prepare"] - 0.01 < mine < sum(phases.values()) + 0.01


def test_seconds_of_a_round(done: Finished) -> None:
    seconds = [row["seconds"] for row in done.rows]
    assert all(value > 0 for value in seconds)
    assert done.result["round_seconds"] == pytest.approx(statistics.median(seconds[1:]), abs=1e-4)
    assert sum(seconds) < sum(done.result["seconds"]["rank0"].values())
    for row in done.rows:
        turn = row["turn_seconds"]
        assert 0 < turn["mean"] <= turn["max"] <= row["seconds"] + 1e-4


def test_cpu_of_waiting_is_part_of_all_cpu(done: Finished) -> None:
    assert 0 <= done.result["wait_cpu_seconds"] <= done.result["training_cpu_seconds"]
    assert done.result["training_cpu_seconds"] > 0


def test_bytes_by_collective(done: Finished) -> None:
    sent, row = done.result["bytes_sent"], 4 * done.result["parameters"]
    assert {"scatter", "gather", "share"} <= set(sent)
    assert all(isinstance(count, int) and count > 0 for count in sent.values()), sent
    assert sent["scatter"] >= ROUNDS * CLIENTS * row
    assert sent["gather"] >= (ROUNDS + LEARNING) * CLIENTS * row


def test_seconds_by_collective(done: Finished) -> None:
    """What waits for others is in them: on rank 0 they hold all of its waiting, and no more than the run."""
    seconds, calls = done.result["collective_seconds"], done.result["collective_calls"]
    assert set(seconds) == {"rank0", "mean", "max"}
    assert set(done.result["bytes_sent"]) <= set(seconds["rank0"]) == set(calls)
    assert calls["scatter"] == ROUNDS, "what evaluation gets serves the next round, but for the last one's"
    assert calls["gather"] == 3 * ROUNDS and calls["share"] > ROUNDS
    inside, phases = sum(seconds["rank0"].values()), done.result["seconds"]["rank0"]
    assert 0.9 * phases["wait"] - 0.05 < inside + phases["start"] + phases["prepare"]
    assert inside < sum(phases.values()) - phases["start"]
    for kind in calls:
        assert seconds["max"][kind] >= max(seconds["rank0"][kind], seconds["mean"][kind] - 1e-4)
        assert seconds["max"][kind] > 0


# ---- result.json: what was run


def test_versions_are_true(done: Finished) -> None:
    versions = done.result["versions"]
    packages = {"amn_mpi", "torch", "numpy", "h5py", "mpi4py"}
    assert packages | {"python", "mpi"} <= set(versions)
    assert versions["python"] == platform.python_version()
    assert versions["instructions"] == native.available()
    for name in set(versions) - {"python", "mpi", "instructions"}:
        assert versions[name] == importlib.metadata.version(name), name
    assert re.search(r"(MPICH|Open MPI).*\d+\.\d+", versions["mpi"])


def test_heterogeneity_is_that_of_the_config(done: Finished) -> None:
    told, config = done.result["heterogeneity"], done.result["config"]["data"]
    assert told == {name: config[name] for name in told}
    names = {"labels", "alpha", "classes_per_client", "label_groups", "sizes", "sigma", "concept"}
    assert names | {"concept_groups", "train_per_client", "test_per_client"} <= set(told)
    assert {name: told[name] for name in GIVEN} == GIVEN


def test_counts_and_names(done: Finished) -> None:
    found = done.result
    assert (found["rounds"], found["clients"], found["ranks"]) == (ROUNDS, CLIENTS, RANKS)
    assert (found["method"], found["data"], found["model"]) == ("amn", "digits", "fitted")
    assert len(found["peak_memory_mb"]) == RANKS and min(found["peak_memory_mb"]) > 10
    assert re.fullmatch("[0-9a-f]{64}", found["models_sha256"])
    assert sorted(set(found["per_client"]["label_group"])) == [0, 1, 2]
    assert len(set(found["per_client"]["train_samples"])) > 1


# ---- result.json: scores


def test_scores_of_every_model(done: Finished) -> None:
    assert tuple(done.result["models"]) == MODELS
    for name, scores in done.result["models"].items():
        accuracy = done.result["per_client"]["models"][name]
        assert scores["mean_accuracy"] == pytest.approx(np.mean(accuracy), abs=1e-5)
        assert scores["std"] == pytest.approx(np.std(accuracy), abs=1e-5)
        deciles = scores["deciles"]
        assert len(deciles) == 9 and deciles == sorted(deciles)
        assert deciles == pytest.approx(np.percentile(accuracy, range(10, 100, 10)), abs=1e-5)
        assert scores["jain"] == pytest.approx(
            np.mean(accuracy) ** 2 / np.mean(np.square(accuracy)), abs=1e-5
        )
        means = [row["models"][name]["mean_accuracy"] for row in done.rows]
        assert scores["best_accuracy"] == max(means)
        assert means[scores["best_round"] - 1] == max(means)
        assert scores["mean_last5"] == pytest.approx(np.mean(means[-5:]), abs=1e-5)
    for key in ("mean_accuracy", "best_round", "best_accuracy", "deciles", "jain"):
        assert done.result[key] == done.result["models"]["fitted"][key]


def test_accuracy_by_size_of_the_clients(done: Finished) -> None:
    clients, parts = done.result["per_client"], done.result["by_size"]
    assert sum(part["clients"] for part in parts) == CLIENTS
    total = sum(part["clients"] * part["mean_accuracy"] for part in parts)
    assert total == pytest.approx(sum(clients["accuracy"]), abs=1e-4)
    edges = [edge for part in parts for edge in part["train_samples"]]
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (min(clients["train_samples"]), max(clients["train_samples"]))


# ---- metrics.jsonl


def test_metrics_of_a_round(done: Finished) -> None:
    assert [row["round"] for row in done.rows] == list(range(1, ROUNDS + 1))
    for row in done.rows:
        layers = len(row["gate"])
        assert layers == 2 and all(0 < gate < 1 for gate in row["gate"])
        assert np.shape(row["evidence"]) == (layers,)
        assert np.sum(row["evidence"]) == pytest.approx(1, abs=1e-5)
        assert len(row["effective_neighbours"]) == 1, "one attention for all layers"
        assert all(1 <= n <= CLIENTS - 1 + 1e-6 for n in row["effective_neighbours"])
        for groups in ("inside_concept_groups", "inside_label_groups"):
            assert len(row[groups]) == 1 and all(0 <= share <= 1 for share in row[groups])
    assert done.rows[2]["gate"] == pytest.approx([0.1, 0.1]), "no meta step in the common rounds"
    assert done.rows[-1]["gate"] != pytest.approx([0.1, 0.1]), "no meta step after them"


# ---- what a person sees


def test_table_at_the_end(done: Finished) -> None:
    lines = done.stdout.splitlines()
    for name, scores in done.result["models"].items():
        row = next(line for line in lines if line.split()[:2] == ["amn:", name])
        figures = re.findall(r"\d+\.\d\d", row)
        keys = ("mean_accuracy", "mean_last5", "std", "worst10", "weighted_accuracy")
        assert figures == [f"{scores[key]:.2f}" for key in keys]
        assert ("*" in row) == (name == "fitted")
    assert any(done.result["models_sha256"] in line for line in lines)
    assert "\x1b" not in done.stdout and "import torch" not in done.stdout


def test_plain_lines_in_a_log(done: Finished) -> None:
    lines = [line for line in done.stdout.splitlines() if re.match(r"amn +round \d", line)]
    assert "round 1/6 " in lines[0] and f"round {ROUNDS}/{ROUNDS} " in lines[-1]
    assert len(lines) < ROUNDS, "six short rounds: no line a round"
    assert f"accuracy {done.result['mean_accuracy']:5.2f} %" in lines[-1]
    assert "left" in lines[0] and "left" not in lines[-1]


def terminal(columns: int = 100) -> tuple[int, int]:
    """(what a person sees, what a program writes to)."""
    seen, written = pty.openpty()
    fcntl.ioctl(written, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    return seen, written


def everything(seen: int, process: subprocess.Popen[bytes]) -> str:
    """All that reaches the terminal until its last writer is gone."""
    text = b""
    while True:
        try:
            piece = os.read(seen, 65536)
        except OSError:  # how Linux ends a terminal
            piece = b""
        if not piece:
            break
        text += piece
    os.close(seen)
    process.wait(20)
    return text.decode()


def test_live_line_on_a_terminal(tmp_path: Path) -> None:
    seen, written = terminal()
    process = subprocess.Popen(
        command("--data.clients", 4, "--rounds", 25, "--out", tmp_path / "out", ranks=RANKS),
        stdin=subprocess.DEVNULL, stdout=written, stderr=written,
        env={**environment({"AMN_CACHE": tmp_path / "cache"}), "TERM": "xterm-256color"},
        start_new_session=True,
    )  # fmt: skip
    os.close(written)
    text = everything(seen, process)
    assert process.returncode == 0, text
    assert text.startswith(f"{RANKS} ranks import torch; then round 1 starts\r\n")
    assert re.search(r"amn  round \d+/25 ", text)
    assert "\x1b[2K" in text, "nothing is redrawn"
    assert "\x1b[?25l" not in text, "a rank that dies would leave the cursor hidden"
    assert "result in" in text


@pytest.mark.parametrize("to, width", [("> {file}", 0), ("| cat > {file}", 100)])
def test_width_of_the_terminal(tmp_path: Path, to: str, width: int) -> None:
    """A file is a log, also where a terminal is further up; a launcher's pipe is none."""
    file = tmp_path / "width"
    shown = f"'{sys.executable}' -c 'from amn_mpi.progress import terminal_width as w; print(w())'"
    seen, written = terminal(100)
    script = f"{shown} {to.format(file=file)}; true"
    process = subprocess.Popen(["sh", "-c", script], stdout=written, stderr=written, env=environment())
    os.close(written)
    said = everything(seen, process)
    assert file.read_text().strip() == str(width), said
