"""How runs end: divergence on all ranks, a slow rank, early signals, a kill, two starts at one moment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from running import REPOSITORY, end, one_line, ranks_of, result, run, start, wait_for

SMALL = ("--data.clients", 4, "--local.epochs", 1, "--progress", "off")
ENDLESS = (*SMALL, "--rounds", 100000, "--evaluate.every", 1000000)
ENDING = Path(__file__).resolve().parent / "scripts" / "ending.py"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, Path]:
    return {"AMN_CACHE": tmp_path / "cache"}


# ---- divergence on several ranks at once


def test_divergence_on_all_ranks_is_told_once(tmp_path: Path, env: dict[str, Path]) -> None:
    what = ("--local.lr", 1e20, "--data.concept", "none", "--rounds", 2, "--progress", "off")
    done = run(*what, "--baselines", "fedavg", "--out", tmp_path / "out", ranks=5, env=env)
    assert done.returncode == 1
    line = one_line(done.stderr)
    assert re.match(r"amn_mpi: round 1: every client of the cohort diverged, client 0 first: ", line)
    assert "NaN or Inf" in line and "local.lr" in line
    assert not (tmp_path / "out" / "result.json").exists()


# ---- slow is not hung


@pytest.mark.alone
def test_a_slow_rank_is_not_taken_for_hung(tmp_path: Path, env: dict[str, Path]) -> None:
    """Rank 3 is idle and waits longer than its timeout; it ends while rank 0 answers nobody."""
    mark = tmp_path / "mark"
    what = ("--data.clients", 2, "--local.epochs", 1, "--rounds", 1, "--progress", "off")
    what += ("--comm.timeout", 6, "--out", tmp_path / "out")
    done = run(*what, ranks=4, env={**env, "HOW": "slow", "MARK": mark}, script=ENDING)
    asleep = float(mark.read_text())
    assert 3.6 <= asleep < 5.9, "the sleep does not cover the end of the idle rank's timeout"
    assert done.returncode == 0, done.stderr
    assert "hangs" not in done.stderr
    assert result(tmp_path / "out")["ranks"] == 3


# ---- signals


def interrupted(folder: Path, delay: float) -> subprocess.CompletedProcess[str]:
    env = {"AMN_CACHE": folder / "cache", "PYTHONFAULTHANDLER": 1}
    process = start(*ENDLESS, "--out", folder / "out", ranks=3, env=env)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    # MPICH's launcher may not notice a rank that ends in Python's own start; its user asks again.
    again = threading.Timer(8, process.send_signal, [signal.SIGINT])
    if delay < 0.1:
        again.start()
    try:
        return end(process, 20)
    finally:
        again.cancel()


@pytest.mark.parametrize("delays", [(0.03, 0.05, 0.07, 0.09), (0.11, 0.15, 0.2, 0.25), (0.3, 0.5, 0.7)])
def test_a_signal_while_starting(tmp_path: Path, delays: Sequence[float]) -> None:
    """What Python says before it has read a line of this project nobody can help.

    Nor what the launcher says: it joins the ends of the ranks by "or", and 2 (SIGINT) with 9 (killed
    by the launcher) is 11, "Segmentation fault", on its standard output. Python tells a real one.
    """
    source = (REPOSITORY / "amn_mpi" / "main.py").read_text().splitlines()
    early = ("from __future__ import annotations", "from amn_mpi import early", "    early.listen()")
    first = {("main.py", str(source.index(line) + 1)) for line in early}
    for delay in delays * 2:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        done = interrupted(folder, delay)
        said = f"{delay} s, status {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert done.returncode != 0, said
        ours = re.findall(rf'File "{REPOSITORY}/amn_mpi/(\S+)", line (\d+)', done.stderr)
        assert {place for place in ours if place[0] != "early.py"} <= first, said
        assert "Segmentation fault" not in done.stderr, said
        assert done.stderr.count("amn_mpi: ") <= 1, said
        assert not (folder / "out" / "result.json").exists()


def test_a_killed_run_leaves_no_lock(tmp_path: Path, env: dict[str, Path]) -> None:
    """Nobody tidies up after SIGKILL: the system has to."""
    out = tmp_path / "out"
    process = start(*ENDLESS, "--out", out, ranks=1, env=env)
    wait_for(out / "metrics.jsonl", 2, process)
    rank = ranks_of(process, 1)[0]
    os.kill(rank, signal.SIGKILL)
    assert end(process, 20).returncode != 0
    assert (out / ".lock").exists() and not (out / "result.json").exists()
    again = run(*ENDLESS, "--out", out, env=env)
    assert again.returncode == 1
    line = one_line(again.stderr)
    assert "holds a run" in line and "metrics.jsonl" in line
    assert "another run is writing" not in line


# ---- two starts at one moment


def test_two_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, env: dict[str, Path]) -> None:
    """Names by default hold the time; starts are repeated until both fall into one second."""
    for attempt in range(5):
        work = tmp_path / str(attempt)
        work.mkdir()
        time.sleep(1.05 - time.time() % 1)  # the folders are made some 0.6 s later
        both = [start(*SMALL, "--rounds", 1, env=env, cwd=work) for _ in range(2)]
        for done in [end(process, 30) for process in both]:
            assert (done.returncode, done.stderr) == (0, "")
        folders = sorted(path for path in (work / "runs").iterdir() if path.is_dir())
        assert len(folders) == 2
        assert all((folder / "result.json").exists() for folder in folders)
        if len({folder.name[: len("20260101-000000")] for folder in folders}) == 1:
            return
    pytest.skip("five times two starts did not fall into one second")
