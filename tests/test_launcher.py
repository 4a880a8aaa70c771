"""A launcher and an MPI library that do not belong together: one line, status 2."""

from __future__ import annotations

import os

import pytest
from running import LAUNCHED, one_line

from amn_mpi.launcher import check_family, check_launcher, local_rank, node_name

MPICH, OPEN_MPI = "MPICH Version: 5.0.2", "Open MPI v5.0.8, package: Open MPI"


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher's variables, and ``os._exit`` that can be seen."""

    def ended(status: int) -> None:
        raise Ended(status)

    for name in [name for name in os.environ if name.startswith(LAUNCHED)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "_exit", ended)
    return monkeypatch


def refused(capfd: pytest.CaptureFixture[str], check: object, *args: object) -> str:
    """What the first process says when it is refused; nothing where it is not."""
    with pytest.raises(Ended) as end:
        check(*args)  # type: ignore[operator]
    assert end.value.args == (2,)
    out, err = capfd.readouterr()
    assert out == ""
    return err


FITS = [
    ({}, 1),  # no launcher at all
    ({"PMI_SIZE": "4"}, 4),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
    ({"SLURM_STEP_NUM_TASKS": "4"}, 4),
    ({"SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "4"}, 4),  # mpirun inside a job step of one task
    ({"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4"}, 4),  # srun --mpi=pmi2
    ({"OMPI_COMM_WORLD_SIZE": "8", "SLURM_STEP_NUM_TASKS": "1"}, 8),
    ({"PMI_SIZE": "", "SLURM_STEP_NUM_TASKS": "two"}, 1),  # says nothing
]


@pytest.mark.parametrize("traces, size", FITS)
def test_one_trace_that_fits_is_enough(
    launched: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], traces: dict[str, str], size: int
) -> None:
    for name, value in traces.items():
        launched.setenv(name, value)
    check_launcher(size, MPICH)
    assert capfd.readouterr() == ("", "")


MISSES = [
    ({"PMI_SIZE": "4"}, "PMI_SIZE"),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE"),
    ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS"),
    ({"PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "2"}, "PMI_SIZE"),
]


@pytest.mark.parametrize("traces, named", MISSES)
def test_none_that_fits_is_one_line(
    launched: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], traces: dict[str, str], named: str
) -> None:
    for name, value in traces.items():
        launched.setenv(name, value)
    line = one_line(refused(capfd, check_launcher, 1, MPICH))
    for word in ("amn_mpi: ", "4 ranks", named, "sees 1", "do not belong together", MPICH):
        assert word in line


@pytest.mark.parametrize(
    "size, rank",
    [
        ("PMI_SIZE", "PMI_RANK"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ],
)
def test_only_the_first_process_speaks(
    launched: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], size: str, rank: str
) -> None:
    launched.setenv(size, "4")
    launched.setenv(rank, "0")
    assert one_line(refused(capfd, check_launcher, 1, MPICH))
    launched.setenv(rank, "3")
    assert refused(capfd, check_launcher, 1, MPICH) == ""


def test_open_mpi_launcher_with_another_library(
    launched: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Told before MPI is initialised, however many ranks there are."""
    launched.setenv("OMPI_COMM_WORLD_SIZE", "1")
    line = one_line(refused(capfd, check_family, MPICH))
    assert "Open MPI's mpirun started 1 ranks (OMPI_COMM_WORLD_SIZE)" in line and MPICH in line
    launched.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert refused(capfd, check_family, MPICH) == ""


@pytest.mark.parametrize(
    "traces, library",
    [
        ({}, MPICH),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, MPICH),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, OPEN_MPI),
        ({"OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "0", "PMI_SIZE": "2"}, MPICH),  # one in the other
    ],
)
def test_a_family_that_fits(
    launched: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    traces: dict[str, str],
    library: str,
) -> None:
    for name, value in traces.items():
        launched.setenv(name, value)
    check_family(library)
    assert capfd.readouterr() == ("", "")


def test_the_number_on_the_host_is_that_of_the_innermost_launcher(launched: pytest.MonkeyPatch) -> None:
    assert local_rank() == 0
    launched.setenv("SLURM_LOCALID", "5")
    assert local_rank() == 5
    launched.setenv("MPI_LOCALRANKID", "2")  # mpirun inside a job step
    assert local_rank() == 2


def test_two_nodes_of_slurm_on_one_machine_are_two(launched: pytest.MonkeyPatch) -> None:
    names = [node_name("host")]
    for node in ("n1", "n2"):
        launched.setenv("SLURMD_NODENAME", node)
        names.append(node_name("host"))
    assert len(set(names)) == 3
