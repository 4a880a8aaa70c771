"""Run the program as a user does, in processes of its own. Holds no test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCHER = Path(sys.executable).parent / "mpirun"
# What a launcher around the tests has set would be taken for this run's own.
LAUNCHED = ("PMI", "MPI", "OMPI_", "PMIX_", "SLURM_", "HYDRA_", "HYDI_", "GFORKER_", "AMN_")


def launcher() -> str:
    """The mpirun that belongs to this Python's MPI; skips the test where there is none."""
    if not LAUNCHER.exists():
        pytest.skip(f"no {LAUNCHER}: the tests with several ranks need the mpich wheel")
    return str(LAUNCHER)


def command(*args: object, ranks: int = 0, script: str | Path | None = None) -> list[str]:
    """The command line of a run.

    Args:
        ranks: 0 runs without a launcher.
        script: a Python file to run in place of ``-m amn_mpi.main``.
    """
    start = [launcher(), "-n", str(ranks)] if ranks else []
    what = ["-m", "amn_mpi.main"] if script is None else [str(script)]
    return [*start, sys.executable, *what, *map(str, args)]


def environment(env: Mapping[str, object] | None = None) -> dict[str, str]:
    """This process's environment without what a launcher or the user put in, plus ``env``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHED)}
    paths = [str(REPOSITORY), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), **{k: str(v) for k, v in (env or {}).items()}}


def start(
    *args: object,
    ranks: int = 0,
    env: Mapping[str, object] | None = None,
    script: str | Path | None = None,
    cwd: str | Path | None = None,
    under: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """A run in the background, in a session of its own; end it with ``end``.

    Args:
        under: a command that starts the run, such as ``setpriv``.
    """
    return subprocess.Popen(
        [*under, *command(*args, ranks=ranks, script=script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(env),
        cwd=cwd or REPOSITORY,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Wait for a run that was started; one that does not end in time is killed, ranks and all."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        out, err = process.communicate()
        pytest.fail(f"no end within {timeout:g} s: {process.args}\n{out}\n{err}")
    except BaseException:
        kill(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(
    *args: object,
    ranks: int = 0,
    env: Mapping[str, object] | None = None,
    timeout: float = 60.0,
    script: str | Path | None = None,
    cwd: str | Path | None = None,
    under: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """``python -m amn_mpi.main ARGS`` (under mpirun for ``ranks`` > 0), to its end."""
    process = start(*args, ranks=ranks, env=env, script=script, cwd=cwd, under=under)
    return end(process, timeout)


def result(folder: Path) -> dict[str, Any]:
    """The result of a finished run."""
    return json.loads((folder / "result.json").read_text())


def wait_for(path: Path, lines: int, process: subprocess.Popen[str], timeout: float = 40.0) -> None:
    """Until a file of a background run holds that many lines."""
    until = time.monotonic() + timeout
    while time.monotonic() < until and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        time.sleep(0.05)
    kill(process)
    out, err = process.communicate()
    pytest.fail(f"{path} did not get {lines} lines:\n{out}\n{err}")


def ranks_of(process: subprocess.Popen[str], count: int) -> list[int]:
    """Process ids of the ranks under a launcher, by rank."""
    found = {variable(pid, "PMI_RANK"): pid for pid in below(process.pid)}
    found.pop("", None)
    assert sorted(found) == list(map(str, range(count))), f"found ranks {sorted(found)}"
    return [found[str(rank)] for rank in range(count)]


def one_line(stderr: str) -> str:
    """The only line on standard error, without a traceback."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, f"not one line:\n{stderr}"
    return lines[0]


def options(**given: object) -> Sequence[str]:
    """``--key value`` from Python names: ``data__clients=2`` is ``--data.clients 2``."""
    words: list[str] = []
    for name, value in given.items():
        words += [f"--{name.replace('__', '.')}", str(value)]
    return words


def kill(process: subprocess.Popen[str]) -> None:
    """The launcher and all below it: hydra gives its proxies sessions of their own."""
    for pid in [*below(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def below(pid: int) -> list[int]:
    """Process ids of all that a process has started, directly or not."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [p for child in map(int, children) for p in (*below(child), child)]


def variable(pid: int, name: str) -> str:
    """A variable of another process's environment, "" where there is none."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    found = [pair.partition(b"=")[2] for pair in pairs if pair.startswith(f"{name}=".encode())]
    return found[0].decode() if found else ""
