"""Rounds of the workloads on MPI ranks, as they are asked for: what ``rounds.py`` starts under mpirun.

Rank 0 reads lines from its standard input, such as ``{"name": "W1", "rounds": 3}``, until it ends, and
answers each with a line of JSON: wall seconds of every round, and of rank 0 in exchange and server without
its waits.
In between all ranks sleep, so that another program can be timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loads import LOADS, TESTS, Load  # noqa: E402

from amn_mpi.main import main  # noqa: E402

if TYPE_CHECKING:
    from amn_mpi.comm import Communicator
    from amn_mpi.rounds import Run

WARM = 2  # AMN's first round has nothing to mix or to learn from yet
ENDLESS = 100_000  # rounds: the last five of a run would be evaluated


@dataclass
class Answer:
    seconds: list[float] = field(default_factory=list)
    exchange: float = 0.0
    server: float = 0.0


def serve(comm: Communicator, argv: Sequence[str]) -> None:
    """argv: a folder with ``<clients>x<samples>.npz``, and the workloads by name."""
    runs = {name: prepared(comm, LOADS[name], argv[0]) for name in argv[1:]}
    for run in runs.values():
        rounds(run, WARM)
    tell(comm, {"ready": sorted(runs), "engines": {name: run.engine.name for name, run in runs.items()}})
    while True:
        comm.configure("sleep", 1800.0)  # spinning ranks would take cores from what is timed meanwhile
        line = comm.share(sys.stdin.readline() if comm.is_server else None)
        if not line:
            return
        asked = json.loads(line)
        run = runs[asked["name"]]
        comm.configure(run.config.comm.wait, run.config.comm.timeout)
        comm.meet()  # all are awake
        tell(comm, vars(rounds(run, asked["rounds"])))


def prepared(comm: Communicator, load: Load, folder: str) -> Run:
    from amn_mpi import config, data, methods
    from amn_mpi.clock import Clock
    from amn_mpi.keeper import Keeper
    from amn_mpi.session import Session

    options = methods.options(load.method)
    what = config.Config(
        rounds=ENDLESS,
        precision=load.precision,  # type: ignore[arg-type]
        method=options(common_rounds=1, drift=0.0) if load.method == "amn" else options(),
        data=config.Data(
            name=f"{folder}/{load.clients}x{load.samples}.npz", cache=folder, clients=load.clients,
            labels="iid", concept="none", train_per_client=load.samples, test_per_client=TESTS,
        ),
        model=config.Model(name=load.model, hidden=64),  # type: ignore[arg-type]
        local=config.Local(epochs=1, batch_size=load.batch, lr=0.01),
        evaluate=config.Evaluate(every=ENDLESS),
        checkpoint=config.Checkpoint(minutes=0),
    )  # fmt: skip
    fed = comm.share(data.prepare(what.data, what.seed) if comm.is_server else None)
    session = Session(what, comm, fed).meet()
    return session.run(what, Clock(comm, time.monotonic()), Keeper(comm, what.checkpoint, None))


def rounds(run: Run, count: int) -> Answer:
    """As ``amn_mpi.rounds.train`` does them."""
    from amn_mpi import signals
    from amn_mpi.errors import Stopped
    from amn_mpi.rounds import run_round

    answer = Answer()
    run.clock.begin("train")
    before = run.clock.snapshot()
    with signals.patience():
        for _ in range(count):
            run_round(run, lambda outcome: answer.seconds.append(outcome.seconds))
            if run.stopped:
                raise Stopped(run.stopped, agreed=True)
    after = run.clock.snapshot()
    answer.exchange, answer.server = ((after[p] - before[p]) / count for p in ("exchange", "server"))
    return answer


def tell(comm: Communicator, what: dict[str, Any]) -> None:
    if comm.is_server:
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:], serve)
