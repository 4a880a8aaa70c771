"""A rank that is killed is named, once; other ends are told as what they are; no process is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import hosts
import pytest
from running import end, one_line, ranks_of, run, start, wait_for

SMALL = ("--data.clients", 4, "--local.epochs", 1, "--progress", "off")
ENDLESS = (*SMALL, "--rounds", 100000, "--evaluate.every", 1000000)
ENDING = Path(__file__).resolve().parent / "scripts" / "ending.py"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, Any]:
    """Also the mark by which ``processes`` knows a run's processes."""
    return {"AMN_CACHE": tmp_path / "cache"}


def processes(folder: Path) -> list[str]:
    """Command lines of all processes that run with this cache: launcher, ranks and watchers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"AMN_CACHE={folder}/cache\0".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [line for line in found if line]  # a zombie has none


def nothing_left(folder: Path, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while (left := processes(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def endless(folder: Path, env: dict[str, Any], ranks: int = 3, **more: Any) -> subprocess.Popen[str]:
    """A run that is amid its rounds."""
    process = start(*ENDLESS, "--out", folder / "out", ranks=ranks, env=env, **more)
    wait_for(folder / "out" / "metrics.jsonl", 2, process)
    return process


def loss(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of ours."""
    assert done.returncode != 0
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "amn_mpi" in line]
    assert len(ours) == 1, f"not one line:\n{done.stdout}\n{done.stderr}"
    assert ours[0] in done.stderr
    return ours[0]


@pytest.mark.parametrize("rank, how", [(0, signal.SIGKILL), (2, signal.SIGKILL), (1, signal.SIGSEGV)])
def test_a_killed_rank_is_named(tmp_path: Path, env: dict[str, Any], rank: int, how: int) -> None:
    process = endless(tmp_path, env)
    assert sum("watch.py" in line for line in processes(tmp_path)) == 2
    pid = ranks_of(process, 3)[rank]
    os.kill(pid, how)
    line = loss(end(process, 10))
    assert line.startswith(f"amn_mpi: rank {rank} on {socket.gethostname()} (process {pid}) was killed")
    assert line.endswith("--resume auto")
    nothing_left(tmp_path)


def test_a_killed_rank_on_another_host_is_named(tmp_path: Path, env: dict[str, Any]) -> None:
    """And the ranks that are then killed on this host are not."""
    process = endless(tmp_path, env | hosts.NETWORKS["ofi"], ranks=4, under=hosts.under())
    assert sum("watch.py" in line for line in processes(tmp_path)) == 4
    pid = ranks_of(process, 4)[3]
    os.kill(pid, signal.SIGKILL)
    assert loss(end(process, 10)).startswith(f"amn_mpi: rank 3 on n2 (process {pid}) was killed")
    nothing_left(tmp_path)


def test_nothing_outlives_a_killed_launcher(tmp_path: Path, env: dict[str, Any]) -> None:
    process = endless(tmp_path, env)
    process.kill()
    done = end(process, 10)
    assert "amn_mpi" not in done.stdout + done.stderr
    nothing_left(tmp_path)


def test_a_normal_end_is_silent(tmp_path: Path, env: dict[str, Any]) -> None:
    """But for a warning where ranks have nothing to do."""
    done = run(*SMALL, "--data.clients", 2, "--rounds", 2, "--out", tmp_path / "out", ranks=5, env=env)
    assert done.returncode == 0
    line = one_line(done.stderr)
    assert "warning" in line and "5 ranks for 2 clients" in line and "2 stay idle" in line
    assert (tmp_path / "out" / "result.json").exists()
    nothing_left(tmp_path)


def test_an_error_on_all_workers_is_told_once(tmp_path: Path, env: dict[str, Any]) -> None:
    what = (*SMALL, "--rounds", 2, "--out", tmp_path / "out")
    done = run(*what, ranks=4, env={**env, "HOW": "wrong"}, script=ENDING)
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 1, done.stderr
    assert len(re.findall(r"^amn_mpi: error on rank [1-3] \(", done.stderr, re.M)) == 1, done.stderr
    assert done.stderr.count("ZeroDivisionError: broken on purpose") == 1
    assert "was killed" not in done.stderr
    assert not (tmp_path / "out" / "result.json").exists()
    nothing_left(tmp_path)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_stop_in_mid_round_is_told_as_one(tmp_path: Path, env: dict[str, Any], name: str) -> None:
    """On the launcher; ``test_resume.py`` has SIGINT, and stops on rank 0 and on a worker."""
    process, out = endless(tmp_path, env), tmp_path / "out"
    os.kill(process.pid, signal.Signals[name])
    begun = time.monotonic()
    done = end(process, 20)
    assert time.monotonic() - begun < 10
    assert done.returncode == 75
    assert one_line(done.stderr) == loss(done)
    assert re.search(
        f"stopped by {name}; after round [0-9]+ of 100000; --resume auto goes on from", loss(done)
    )
    assert not (out / "result.json").exists() and not (out / ".lock").exists()
    nothing_left(tmp_path, 2.0)
