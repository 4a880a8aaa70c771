"""What a run will need, as its user reads it, beside what this host has: ``--dry_run`` and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi import budget, plugin
from amn_mpi.budget import Need
from amn_mpi.data.commands import show as who
from amn_mpi.placement import Placement, place, training_steps
from amn_mpi.progress import table

if TYPE_CHECKING:
    from amn_mpi.comm import Communicator
    from amn_mpi.config import Config
    from amn_mpi.data import Federation

MOST_CLIENTS, MOST_RANKS = 40, 12


def available() -> int:
    """Bytes of this host that are free for the run; a control group's limit counts too."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return min([int(fields["MemAvailable"].split()[0]) * 1024, *_limits(Path("/proc/self/cgroup"))])


def warnings(config: Config, fed: Federation, comm: Communicator) -> list[str]:
    """Where newcomers get nothing, and where this host's ranks, the first ones, need more than there is."""
    told = []
    if config.server == "sharded" and config.data.unseen:
        told = [f"server = sharded: clients held back by data.unseen = {config.data.unseen:g} are not served"]
    found = budget.planned(config, fed, comm.size, budget.layout_of(config, fed))[: comm.ranks_on_host]
    needed, left = budget.memory_on_host(found), available()
    if needed <= left:
        return told
    largest = max(range(len(found)), key=lambda rank: found[rank].memory)
    return [
        *told,
        f"{_ranks(found)} on {comm.host}: about {_gb(needed)} of memory needed, {_gb(left)} "
        f"available; rank {largest} alone needs {_gb(found[largest].memory)}: lower "
        f"{_remedy(config, found[largest], len(found))}, or use more hosts",
    ]


def show(config: Config, fed: Federation, comm: Communicator) -> None:
    """Print who gets which data, and what every rank will need."""
    layout = budget.layout_of(config, fed)
    found = budget.planned(config, fed, comm.size, layout)
    placement = place(training_steps(config.local, fed.train), comm.owners)
    table(f"{fed.name}: {fed.clients} clients", *client_table(fed, placement, comm.size))
    if fed.clients > MOST_CLIENTS:
        print(f"  {fed.clients - MOST_CLIENTS} more clients are not listed\n")
    what = f"{plugin.short(config.method.name)}, {layout.size:,} parameters, {config.rounds} rounds"
    table(f"what each rank needs: {what}", *rank_table(found))
    groups = len(_alike(found))
    if groups > MOST_RANKS:
        print(f"  {groups - MOST_RANKS} more kinds of ranks need less and are not listed")
    print(f"  memory includes about {budget.BASE // budget.MB} MB of Python, torch and MPI a rank")
    here = found[: comm.ranks_on_host]
    print(
        f"  {_ranks(here)} on {comm.host}: about {_gb(budget.memory_on_host(here))} of memory needed, "
        f"{_gb(available())} available",
        flush=True,
    )


def client_table(fed: Federation, placement: Placement, ranks: int) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of who gets which data, and on which rank."""
    columns, rows = who.client_table(fed, MOST_CLIENTS)
    owner = np.repeat(np.arange(placement.owners), np.diff(placement.bounds)) + (ranks > 1)
    for row, rank in zip(rows, owner):
        row.insert(1, str(rank))
    return [columns[0], "rank", *columns[1:]], rows


def rank_table(found: Sequence[Need]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what ranks need; ranks that need the same share a row."""
    columns = ["rank", "clients", "data", "models", "batch", "memory", "down a round", "up a round"]
    columns += ["down in all", "up in all"]
    rows = []
    for ranks in _alike(found)[:MOST_RANKS]:
        need = found[ranks[0]]
        memory = (need.data, need.vectors, need.work, need.memory)
        traffic = (need.down, need.up, need.down_run, need.up_run)
        rows.append([_spans(ranks), str(need.clients), *map(_size, memory + traffic)])
    return columns, rows


# ---- inside


def _remedy(config: Config, need: Need, ranks: int) -> str:
    """The keys that make the largest part of the largest rank smaller."""
    if need.work > max(budget.BASE, need.data, need.vectors):
        return f"evaluate.batch_size ({config.evaluate.batch_size})"
    if max(need.data, need.vectors) < budget.BASE:
        return f"the number of ranks ({ranks})"
    if need.data > need.vectors:
        return f"data.train_per_client ({config.data.train_per_client or 'all there are'})"
    model = "model.name"
    if config.model.name.startswith("mlp"):
        model = f"model.hidden ({config.model.hidden})"
    if config.model.tokens:
        model = f"model.vocabulary ({config.model.vocabulary})"
    return f"{model} or data.clients ({config.data.clients})"


def _limits(membership: Path, root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Limits of the control groups around this process, versions 2 and 1."""
    found = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top, name = (root, "memory.max") if not kinds else (root / kinds, "memory.limit_in_bytes")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder != top and top not in folder.parents:
                break
            try:
                found.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return found


def _alike(found: Sequence[Need]) -> list[list[int]]:
    """Ranks with equal needs together: rank 0 first, then the neediest."""
    kinds: dict[Need, list[int]] = {}
    for rank, need in enumerate(found[1:], 1):
        kinds.setdefault(need, []).append(rank)
    return [[0], *sorted(kinds.values(), key=lambda ranks: -found[ranks[0]].memory)]


def _spans(ranks: Sequence[int]) -> str:
    """1, 2, 3, 7 -> 1-3, 7; shortened when there are many."""
    ends = [k for k, rank in enumerate(ranks) if k + 1 == len(ranks) or ranks[k + 1] != rank + 1]
    starts = [0, *(k + 1 for k in ends[:-1])]
    spans = [f"{ranks[a]}-{ranks[b]}" if b > a else f"{ranks[a]}" for a, b in zip(starts, ends)]
    return ", ".join(spans) if len(spans) <= 3 else f"{', '.join(spans[:2])}, ... ({len(ranks)} ranks)"


def _ranks(found: Sequence[Need]) -> str:
    return f"{len(found)} rank{'s' if len(found) > 1 else ''}"


def _size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _gb(count: float) -> str:
    return f"{count / 2**30:.1f} GB"
