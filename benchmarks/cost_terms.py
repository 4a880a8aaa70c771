"""The terms of the cost model, their fit, and what they say of a machine that is not here.

A round's seconds = sum of coefficient x term. What a method moves and holds is asked of
``amn_mpi.budget``, which a run is checked against, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np

from amn_mpi import budget, methods
from amn_mpi.blocks import BLOCK
from amn_mpi.config import Checkpoint, Config, Data, Local, Model
from amn_mpi.data import Federation

NAMES = (
    "a turn of AMN",
    "a turn of AMN, per million parameters",
    "a turn of FedAvg",
    "a turn of FedAvg, per million parameters",
    "a turn beside others, on top per million parameters",
    "a GB through rank 0",
    "a message",
    "a message with clients' rows, on top",
    "a GFLOP of the server",
    "a round",
)
SKETCH, CALLS, ROWS = 512, 4, 2  # numbers of a sketch; collectives of a round, and AMN's scatter and gather
ROUNDS = 100
NETWORK, LATENCY = 10.0, 5e-6  # of the machine that is not here: GB/s of a rank, seconds of a message


@dataclass(frozen=True)
class Setup:
    """A run as the model sees it: an mlp, 60 training samples a client, one epoch in batches of ten.

    AMN's meta-network learns in every round of it: its dearest rounds, with two vectors up.
    """

    method: str
    clients: int
    hidden: int
    ranks: int
    server: str = "rank0"

    @property
    def config(self) -> Config:
        always = {"common_rounds": 0, "meta_rounds": ROUNDS, "drift": 0.0} if self.method == "amn" else {}
        return Config(
            rounds=ROUNDS,
            server=self.server,  # type: ignore[arg-type]
            method=methods.options(self.method)(**always),
            data=Data(clients=self.clients),
            model=Model(hidden=self.hidden),
            local=Local(epochs=1),
            checkpoint=Checkpoint(minutes=0),
        )

    @property
    def parameters(self) -> int:
        return 784 * self.hidden + self.hidden + self.hidden * 10 + 10

    @property
    def gflops(self) -> tuple[float, float]:
        """Of AMN's server: what is done over columns, and what on rank 0 with sketches of two layers."""
        pairs = self.clients**2 / 1e9 if self.method == "amn" else 0.0
        return 4.0 * self.parameters * pairs, 3.0 * 2 * 2 * SKETCH * pairs

    @property
    def blocks(self) -> int:
        return sum(ceil(size / BLOCK) for size in (785 * self.hidden, 10 * self.hidden + 10))

    def needs(self) -> list[budget.Need]:
        """What every rank holds and moves, rank 0 first."""
        ones = np.ones(self.clients, np.int64)
        fed = Federation(
            name="", path="", x_offset=0, y_offset=0, x_dtype="|u1", shape=(1, 28, 28),
            class_names=[""] * 10, scale=1.0, shift=0.0, start=np.arange(self.clients + 1) * 70,
            train=60 * ones, test=10 * ones, train_counts=np.full((self.clients, 10), 6),
            label_group=0 * ones, concept_group=0 * ones,
        )  # fmt: skip
        return budget.planned(self.config, fed, self.ranks, budget.layout_of(self.config, fed))


def turns(setup: Setup, at_a_time: int) -> list[float]:
    """The first five terms: clients' turns one after another, each by a constant and by its parameters.

    Turns at the same time share caches and the way to memory, so those cost more.
    """
    one_by_one = setup.clients / at_a_time
    own = [one_by_one, one_by_one * setup.parameters / 1e6]
    beside = own[1] if at_a_time > 1 else 0.0
    return [*own, 0.0, 0.0, beside] if setup.method == "amn" else [0.0, 0.0, *own, beside]


def terms(setup: Setup, cores: int) -> np.ndarray:
    """All terms of a run whose ranks share ``cores`` cores."""
    rank0 = setup.needs()[0]
    workers = setup.ranks - 1
    rows = ROWS * workers if setup.method == "amn" else 0
    exchange = [(rank0.down + rank0.up) / 1e9, CALLS * workers, rows]
    return np.array([*turns(setup, min(workers, cores)), *exchange, sum(setup.gflops), 1.0])


def fit(rows: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Coefficients, none below zero, with the least sum of squared relative errors."""
    scaled, left = rows / seconds[:, None], list(range(rows.shape[1]))
    found = np.zeros(rows.shape[1])
    while left:
        part = np.linalg.lstsq(scaled[:, left], np.ones(len(seconds)), rcond=None)[0]
        if (part >= 0).all():
            found[left] = part
            break
        left.pop(int(part.argmin()))
    return found


def far_away(setup: Setup, found: np.ndarray) -> dict[str, float]:
    """Seconds of a round where every rank has a core and a network of its own: an extrapolation.

    Turns and arithmetic are as fast as here. A rank's bytes pass its link at NETWORK, rank 0's messages
    follow each other at LATENCY. Broadcasts and sums go along a binary tree, as MPI does it where ranks spin.
    Sharded, the arithmetic over columns is divided among the owners of blocks, and every step through them
    costs two exchanges among all owners and a message of each block's rank to rank 0.
    """
    needs, owners = setup.needs(), setup.ranks - 1
    rank0, owner = needs[0], max(needs[1:], key=lambda need: need.down + need.up)
    train = float(np.dot(turns(setup, min(owners, setup.clients)), found[:5]))
    levels = ceil(log2(setup.ranks))
    down, up, messages, at_once = float(rank0.down), float(rank0.up), float(CALLS * owners), 1.0
    if setup.method == "fedavg":
        down, up, messages = down / owners * levels, up / owners * levels, CALLS * levels
    if setup.server == "sharded":
        steps = ceil(setup.blocks / owners)
        down, at_once = down / owners * levels, setup.parameters / (steps * BLOCK)
        messages += 2 * steps * owners + setup.blocks
    moved = max(down + up, owner.down + owner.up) / 1e9
    exchange = moved / NETWORK + messages * LATENCY
    columns, alone = setup.gflops
    server = (columns / at_once + alone) * float(found[NAMES.index("a GFLOP of the server")])
    return {
        "training": train,
        "exchange": exchange,
        "server step": server,
        "seconds a round": train + exchange + server,
        "rank 0, GB of memory": rank0.memory / 2**30,
        "an owner, GB": max(need.memory for need in needs[1:]) / 2**30,
        "GB through the busiest rank": moved,
    }


def extrapolation(found: np.ndarray) -> list[dict[str, Any]]:
    """1,000 owners and 10,000 clients, and smaller ones on the way, with both servers."""
    rows: list[dict[str, Any]] = []
    for clients, owners, hidden in ((100, 10, 64), (1000, 100, 64), (10_000, 1000, 64), (10_000, 1000, 741)):
        for method, server in (("amn", "rank0"), ("amn", "sharded"), ("fedavg", "rank0")):
            setup = Setup(method, clients, hidden, owners + 1, server)
            what = {"ranks": owners + 1, "clients": clients, "parameters": setup.parameters}
            rows.append({**what, "method": method, "server": server, **far_away(setup, found)})
    return rows
