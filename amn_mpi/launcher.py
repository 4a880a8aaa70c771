"""Does the launcher belong to the MPI library? Judged by what launchers leave in the environment."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

LAUNCHERS = (  # (how many ranks the launcher says it started, which of them this is)
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)

# How many ranks on this host come before this one.
LOCAL = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


def local_rank() -> int:
    """This rank's number on its host as the launcher has it; 0 where it does not say."""
    said = [os.environ[name] for name in LOCAL if os.environ.get(name, "").isdigit()]
    return int(said[0]) if said else 0


def node_name(host: str) -> str:
    """What tells hosts apart: several of Slurm's nodes may be one machine."""
    return f"{os.environ.get('SLURMD_NODENAME', '')} {host}"


def check_family(library: str) -> None:
    """Stop before initialisation where another MPI than Open MPI was started by its launcher.

    MPICH's own refusal comes from inside MPI_Init, once per rank and a page long.
    """
    started = os.environ.get("OMPI_COMM_WORLD_SIZE")
    if started and "PMI_RANK" not in os.environ and not library.startswith("Open MPI"):
        what = f"Open MPI's mpirun started {started} ranks (OMPI_COMM_WORLD_SIZE)"
        _mismatch(what, library, "OMPI_COMM_WORLD_RANK")


def check_launcher(size: int, library: str) -> None:
    """Stop when no launcher started as many ranks as this MPI library sees.

    A launcher of another MPI starts N jobs of one rank each and says nothing. One launcher inside
    another (mpirun in a job step) leaves several traces: one that fits is enough.
    """
    traces = [(os.environ.get(count, ""), count, rank) for count, rank in LAUNCHERS]
    traces = [trace for trace in traces if trace[0].isdigit()]
    if traces and all(int(started) != size for started, _, _ in traces):
        started, count, rank = traces[0]
        what = f"the launcher started {started} ranks ({count}), the MPI library sees {size}"
        _mismatch(what, library, rank)


def _mismatch(what: str, library: str, rank_name: str) -> NoReturn:
    """One line from the first of the processes, status 2 from all."""
    if os.environ.get(rank_name, "0") == "0":
        print(
            f"amn_mpi: {what}: they do not belong together. Library: {library}; use its own "
            "mpirun, or under Slurm srun --mpi=pmi2 (pmix for Open MPI)",
            file=sys.stderr,
            flush=True,
        )
    os._exit(2)
