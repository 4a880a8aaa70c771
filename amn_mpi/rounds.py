"""Training: the file to read first. The same code runs on every rank.

Rank 0 serves (meta-network, metrics, files), the owners train their clients; with one rank,
rank 0 does both. No result depends on the number of ranks: rows are in cohort order, sums are
exact, and everything random is a function of (seed, purpose, round, client).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from amn_mpi import declared, rng, signals
from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.config import Config
from amn_mpi.errors import Diverged, Interrupted, Stopped
from amn_mpi.exchange import Exchange
from amn_mpi.keeper import Keeper
from amn_mpi.local import Engine
from amn_mpi.methods.base import Arrived, Method, State, Update
from amn_mpi.placement import Placement
from amn_mpi.shards import Shards
from amn_mpi.turns import deployed, groups, mine, together, turns


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
        shards: all clients' models in columns over the ranks; None where they are on rank 0.
        done: rounds that are finished.
        open: the last of them on rank 0, where a stop left it without its evaluation.
        stopped: number of the signal that ended the run early; 0 if none did.
    """

    config: Config
    comm: Communicator
    placement: Placement
    method: Method
    exchange: Exchange
    clock: Clock
    engine: Engine
    keeper: Keeper
    samples: dict[int, Samples]
    state: State
    server: State = field(default_factory=dict)
    shards: Shards | None = None
    done: int = 0
    open: Outcome | None = None
    stopped: int = 0

    @property
    def clients(self) -> int:
        return self.placement.bounds[-1]

    def row(self, client: int) -> int:
        """Where one of this rank's clients stands in the rows of ``state``."""
        return client - next(iter(self.samples))

    def reopen(self, plain: Mapping[str, Any]) -> None:
        """Make the last finished round ``open`` again, from ``Outcome.plain``."""
        cohort = rng.cohort(self.config.seed, self.done, self.clients, self.config.cohort)
        dropped = {int(client): reason for client, reason in plain["dropped"].items()}
        self.open = Outcome(self.done, cohort, plain["figures"], plain["seconds"], dropped)


@dataclass(frozen=True)
class Outcome:
    """A finished round as rank 0 sees it.

    Attributes:
        seconds: wall time without evaluation.
        dropped: client -> why what it returned was not used.
        correct: (N, models), None if not evaluated.
    """

    round: int
    cohort: np.ndarray
    figures: dict[str, Any]
    seconds: float
    dropped: Mapping[int, str] = field(default_factory=dict)
    correct: np.ndarray | None = None

    def plain(self) -> dict[str, Any]:
        """What is needed to evaluate it later, as JSON values."""
        return {"figures": self.figures, "seconds": self.seconds, "dropped": dict(self.dropped)}


@dataclass(frozen=True)
class Word:
    """What rank 0 tells all at the end of a round.

    Attributes:
        trouble: why the run cannot go on, else empty.
        stop: number of the signal that ends the run, 0 if it goes on.
        void: the round does not count.
        save: a checkpoint is due.
    """

    trouble: str = ""
    stop: int = 0
    void: bool = False
    save: bool = False


def train(run: Run, record: Callable[[Outcome], None]) -> None:
    """All rounds that are left; ``record`` is called after each (on rank 0 it holds what all did).

    Raises:
        Diverged, Stopped: on every rank; at a stop everything is saved.
    """
    run.clock.begin("train")
    with signals.patience():
        if run.open is not None:
            conclude(run, run.open, record)
        while run.done < run.config.rounds and not run.stopped:
            run_round(run, record)
        with run.clock("checkpoint"):
            run.stopped = run.comm.share(run.stopped or (run.comm.stopping if run.open else 0))
            run.keeper.finish(run)
    if run.stopped:
        raise Stopped(run.stopped, run.keeper.told(run), agreed=True)


def run_round(run: Run, record: Callable[[Outcome], None]) -> None:
    """One round of personalised federated learning."""
    t, started = run.done + 1, time.monotonic()
    cohort = rng.cohort(run.config.seed, t, run.clients, run.config.cohort)
    with run.clock("exchange"):
        received = run.exchange.down(t, cohort, run.server)
    with run.clock("train"):
        updates = turns(run, t, cohort, received)
    with run.clock("checkpoint"):
        run.keeper.write(run)
    with run.clock("exchange"):
        arrived = run.exchange.bring_up(cohort, updates)
    with run.clock("server"):
        figures = serve(run, t, cohort, arrived)
    with run.clock("exchange"):
        word = agree(run, t, arrived)
    if word.void:
        return
    with run.clock("train"):
        commit(run, cohort, updates)
    dropped = {} if arrived is None else arrived.dropped
    conclude(run, Outcome(t, cohort, figures, time.monotonic() - started, dropped), record)
    if word.save:
        with run.clock("checkpoint"):
            run.keeper.offer(run)


def conclude(run: Run, outcome: Outcome, record: Callable[[Outcome], None]) -> None:
    """Evaluate and record a finished round; a stop leaves it open, to be evaluated after a restart."""
    run.open = outcome
    if evaluates(run.config, outcome.round):
        if run.stopped:
            return
        with run.clock("evaluate"):
            outcome = replace(outcome, correct=evaluate(run, outcome.round))
        if outcome.correct is None:
            return
    run.open = None
    with run.clock("server"):
        record(outcome)


def serve(run: Run, t: int, cohort: np.ndarray, arrived: Arrived | None) -> dict[str, Any]:
    """The method's server step on rank 0; where the models are sharded, all ranks help."""
    if arrived is not None and (arrived.trouble or voids(run, arrived)):
        arrived = None
    figures: dict[str, Any] = {}
    if run.shards is not None:
        figures = run.shards.aggregate(run.server, t, cohort, arrived, run.exchange.up)
    elif arrived is not None:
        figures = run.method.aggregate(run.server, t, arrived.cohort, arrived)
    if arrived is None:
        return {}
    figures = declared.figures(run.method, figures)
    declared.state(run.method, "aggregate's server state", run.server)
    turns = {"mean": round(float(arrived.seconds.mean()), 4), "max": round(float(arrived.seconds.max()), 4)}
    for name, values in run.server.items():
        # What has a row for each client is made of rows that were checked as they arrived.
        if len(values.shape) and len(values) != run.clients and not torch.isfinite(values.sum()):
            arrived.trouble = f"the server's {name} holds NaN or Inf; smaller step sizes are the remedy"
    return {**figures, "turn_seconds": turns}


def voids(run: Run, arrived: Arrived) -> bool:
    """Whether a stop came too early for this round to count."""
    return arrived.cut or run.open is not None


def agree(run: Run, t: int, arrived: Arrived | None) -> Word:
    """Rank 0 tells all how the round ends.

    Raises:
        Diverged: on every rank, before anything of the round is kept.
    """
    word: Word = run.comm.share(None if arrived is None else judge(run, t, arrived))
    if word.trouble:
        raise Diverged(f"round {t}: {word.trouble}")
    run.stopped = word.stop
    return word


def judge(run: Run, t: int, arrived: Arrived) -> Word:
    """Rank 0's word on a round."""
    stop = run.comm.stopping
    if voids(run, arrived):
        return Word(stop=stop, void=True)
    if arrived.trouble:
        return Word(trouble=arrived.trouble)
    save = not stop and t < run.config.rounds and run.keeper.due(t)
    return Word(stop=stop, save=save)


def commit(run: Run, cohort: np.ndarray, updates: list[Update]) -> None:
    """Client state changes here and nowhere else: a round cut short leaves no trace.

    A client that diverged stays where it was before the round.
    """
    for (_, client), update in zip(mine(run, cohort), updates):
        for name, vector in update.state.items() if not update.trouble else ():
            run.state[name][run.row(client)] = vector
    run.done += 1


def evaluates(config: Config, t: int) -> bool:
    """Every ``evaluate.every`` rounds, and each of the last five (their mean is reported)."""
    return t % config.evaluate.every == 0 or t > config.rounds - 5


def evaluate(run: Run, t: int) -> np.ndarray | None:
    """Rightly classified test samples of every client by each model: (N, models) on rank 0.

    None there if a stop cut it off.
    """

    def judged(k: int, number: int, engine: Engine) -> list[int]:
        test = run.samples[number]
        models = deployed(run, t, k, number, newest, engine)
        return [engine.correct(vector, test.x_test, test.y_test) for _, vector in models]

    everyone, width = np.arange(run.clients), len(run.method.models)
    table: Any = []
    try:
        newest = run.exchange.renew(t + 1, everyone, run.server)
        for group in groups(run, list(enumerate(run.samples))):
            table += together(run, group, judged)
    except Interrupted:
        table = np.full((len(run.samples), width), -1)
    counts = run.exchange.gather_counts(np.array(table), width, everyone)
    return None if (counts < 0).any() else counts
