"""Training: the file to read first. The same code runs on every rank.

Rank 0 serves (meta-network, metrics, files), the owners train their clients; with one rank,
rank 0 does both. No result depends on the number of ranks: rows are in cohort order, sums are
exact, and everything random is a function of (seed, purpose, round, client).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from amn_mpi import rng
from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.config import Config
from amn_mpi.errors import Diverged
from amn_mpi.exchange import Exchange
from amn_mpi.local import Engine
from amn_mpi.methods.base import Arrived, Client, Method, State, Update
from amn_mpi.placement import Placement


@dataclass
class Samples:
    """One client's samples as tensors on the training device."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


@dataclass
class Run:
    """Everything one rank holds during a run.

    Attributes:
        samples: this rank's clients by number, ascending; empty on a rank that only serves.
        state: name -> (own clients, ...), in the same order.
        server: the method's server state on rank 0, else empty.
        numbers: what the method's ``deploy`` gave after the last round.
    """

    config: Config
    comm: Communicator
    placement: Placement
    method: Method
    exchange: Exchange
    clock: Clock
    engine: Engine
    samples: dict[int, Samples]
    state: State
    server: State = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def clients(self) -> int:
        return self.placement.bounds[-1]

    def row(self, client: int) -> int:
        """Where one of this rank's clients stands in the rows of ``state``."""
        return client - next(iter(self.samples))


@dataclass(frozen=True)
class Outcome:
    """A finished round as rank 0 sees it.

    ``seconds``: wall time without evaluation. ``correct``: (N, models), None if not evaluated.
    """

    round: int
    cohort: np.ndarray
    figures: dict[str, Any]
    seconds: float
    correct: np.ndarray | None


def train(run: Run, record: Callable[[Outcome], None]) -> None:
    """All rounds; ``record`` is called after each (on rank 0 it holds what all clients did)."""
    run.clock.begin("train")
    for t in range(1, run.config.rounds + 1):
        outcome = run_round(run, t)
        with run.clock("server"):
            record(outcome)


def run_round(run: Run, t: int) -> Outcome:
    """One round of personalised federated learning."""
    started = time.monotonic()
    cohort = rng.cohort(run.config.seed, t, run.clients, run.config.cohort)
    with run.clock("exchange"):
        received = run.exchange.down(t, cohort, run.server)
    with run.clock("train"):
        updates = [turn(run, t, cohort, k, client, received) for k, client in mine(run, cohort)]
    with run.clock("exchange"):
        arrived = run.exchange.bring_up(cohort, updates)
    with run.clock("server"):
        figures = serve(run, t, cohort, arrived)
    with run.clock("exchange"):
        agree(run, t, arrived)
    with run.clock("train"):
        commit(run, cohort, updates)
    seconds, correct = time.monotonic() - started, None
    if evaluates(run.config, t):
        with run.clock("evaluate"):
            correct = evaluate(run, t)
    return Outcome(t, cohort, figures, seconds, correct)


def mine(run: Run, cohort: np.ndarray) -> Iterator[tuple[int, int]]:
    """This rank's members of the cohort as (position among them, client)."""
    if run.comm.owner is None:
        return iter(())
    return enumerate(map(int, run.placement.of(run.comm.owner, cohort)))


def turn(run: Run, t: int, cohort: np.ndarray, k: int, number: int, received: torch.Tensor) -> Update:
    """One client's turn: the method's local update, and a check of what it returns."""
    client = view(run, t, number, run.exchange.slot(k))
    started = time.monotonic()
    update = run.method.local_update(client, share(run, k, received), run.engine)
    check(run, update)
    trouble = run.exchange.take(number, k, cohort, update)
    state = {name: vector.cpu() for name, vector in update.state.items()}  # a GPU holds one client
    return replace(update, state=state, seconds=time.monotonic() - started, trouble=trouble)


def check(run: Run, update: Update) -> None:
    """What a method returns is what it declares; else its author hears of it in the first turn.

    Raises:
        TypeError: names missing or too many, or state that the next client's turn would overwrite.
    """
    method, who = run.method, type(run.method).__name__
    for kind, got, declared in (
        ("state", update.state, run.state),
        ("figures", update.figures, method.wire.figures),
    ):
        if set(got) != set(declared):
            raise TypeError(
                f"{who}.local_update returned {kind} {sorted(got)}, declared are {sorted(declared)}"
            )
    shared = [run.engine.parameters, run.engine.gradients]
    shared += [run.exchange.up] if method.wire.up == "mean" else []
    workspace = {v.untyped_storage().data_ptr() for v in shared}
    for name, vector in update.state.items():
        if vector.untyped_storage().data_ptr() in workspace:
            raise TypeError(f"{who}.local_update returned a workspace as state {name}: clone it")


def share(run: Run, k: int, received: torch.Tensor) -> torch.Tensor:
    """What came down for the k-th of this rank's clients: (received, S), or empty."""
    if not len(received):
        return received
    return received[k if run.method.wire.down == "rows" else 0]


def serve(run: Run, t: int, cohort: np.ndarray, arrived: Arrived | None) -> dict[str, Any]:
    """The method's server step on rank 0."""
    if arrived is None or arrived.trouble:
        return {}
    turns = {"mean": round(float(arrived.seconds.mean()), 4), "max": round(float(arrived.seconds.max()), 4)}
    figures = run.method.aggregate(run.server, t, cohort, arrived)
    for name, values in run.server.items():
        # What has a row for each client is made of rows that were checked as they arrived.
        if len(values.shape) and len(values) != run.clients and not torch.isfinite(values.sum()):
            arrived.trouble = f"the server's {name} holds NaN or Inf; smaller step sizes are the remedy"
    return {**figures, "turn_seconds": turns}


def agree(run: Run, t: int, arrived: Arrived | None) -> None:
    """Rank 0 tells all what evaluation needs, or that the round is void.

    Raises:
        Diverged: on every rank, before anything of the round is kept.
    """
    word: str | dict[str, float] = ""
    if arrived is not None:
        word = arrived.trouble or run.method.deploy(run.server)
    word = run.comm.share(word)
    if isinstance(word, str):
        raise Diverged(f"round {t}: {word}")
    run.numbers = word


def commit(run: Run, cohort: np.ndarray, updates: list[Update]) -> None:
    """Client state changes here and nowhere else: a round cut short leaves no trace."""
    for (_, client), update in zip(mine(run, cohort), updates):
        for name, vector in update.state.items():
            run.state[name][run.row(client)] = vector


def evaluates(config: Config, t: int) -> bool:
    """Every ``evaluate.every`` rounds, and each of the last five (their mean is reported)."""
    return t % config.evaluate.every == 0 or t > config.rounds - 5


def evaluate(run: Run, t: int) -> np.ndarray:
    """Rightly classified test samples of every client by each model: (N, models) on rank 0."""
    everyone = np.arange(run.clients)
    table = []
    for client, models in personal_models(run, t):
        test = run.samples[client]
        table.append([run.engine.correct(v, test.x_test, test.y_test) for _, v in models])
    width = len(run.method.models)
    return run.exchange.gather_numbers(np.array(table), width, everyone).astype(np.int64)


def personal_models(run: Run, t: int) -> Iterator[tuple[int, Iterator[tuple[str, torch.Tensor]]]]:
    """This rank's clients with their models after round ``t``; a collective call."""
    everyone = np.arange(run.clients)
    newest = run.exchange.renew(t + 1, everyone, run.server)
    for k, number in enumerate(run.samples):
        client = view(run, t, number, run.exchange.up[:0])
        yield number, run.method.deployed(client, share(run, k, newest), run.numbers, run.engine)


def view(run: Run, t: int, number: int, up: torch.Tensor) -> Client:
    """A client as its method sees it."""
    samples = run.samples[number]
    state = {name: rows[run.row(number)] for name, rows in run.state.items()}
    draw = partial(rng.generator, run.config.seed, round=t, client=number)
    return Client(number, t, samples.x, samples.y, state, up, draw)
