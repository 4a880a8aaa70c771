"""Accuracy at equal bytes: what methods reach once a client has moved as much as in FedAvg's run.

    python benchmarks/equal_bytes.py standard_fashion_mnist [--scores FILE] [--seeds 0,1,2] [--of fedavg]

Bytes are those that one client must receive and send, counted from what each method moves (``Wire``), four
for a number: the same on any number of ranks, where one rank sends nothing. Evaluation adds none. Accuracies
are of single rounds, the last kept one (``at5``, ``at10``, ... in scores.csv) that the bytes allow, averaged
over the seeds.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from report import table
from suite import asked, seeds

from amn_mpi import budget, methods
from amn_mpi.config import Config
from amn_mpi.data import Federation
from amn_mpi.methods.base import Setting
from amn_mpi.scores import Score

FLOAT = 4
SHAPES = {"fashion_mnist": (1, 28, 28), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def federation(config: Config) -> Federation:
    """As far as the size of a model depends on it."""
    clients = config.data.clients
    ones = np.ones(clients, np.int64)
    return Federation(
        name="", path="", x_offset=0, y_offset=0, x_dtype="|u1", shape=SHAPES[config.data.name],
        class_names=[""] * 10, scale=1.0, shift=0.0, start=np.arange(clients + 1) * 2,
        train=ones, test=ones, train_counts=np.full((clients, 10), 6),
        label_group=0 * ones, concept_group=0 * ones,
    )  # fmt: skip


def moved(config: Config) -> np.ndarray:
    """Bytes that a client has received and sent after rounds 1, 2, ..., shape (rounds,)."""
    fed = federation(config)
    setting = Setting(budget.layout_of(config, fed), fed.train, config.seed, config.local)
    method = methods.get(config.method.name)(config.method, setting)
    wire, part = method.wire, method.part.size
    down = 0 if wire.down == "none" else wire.received * part
    numbers = method.features + len(wire.figures)
    rounds = range(1, config.rounds + 1)
    up = [0 if wire.up == "none" else method.returned(t) * part + numbers for t in rounds]
    return FLOAT * np.cumsum([down + each for each in up])


def reached(score: Score, allowed: int) -> float:
    """Accuracy of the last kept round up to the one that the bytes allow."""
    return score.curve[max(at for at in score.curve if at <= allowed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=seeds, default="", help="by default all that are there")
    parser.add_argument("--of", default="fedavg", help="the method whose whole run sets the bytes")
    args, suite, found = asked(parser)
    configs = {cell.label: cell.config for cell in suite.cells}
    scenarios = list(dict.fromkeys(cell.scenario for cell in suite.cells))
    scores = [score for score in found if not args.seeds or score.seed in args.seeds]
    cap = moved(configs[args.of])[-1]
    lines = []
    for label, config in configs.items():
        spent = moved(config)
        allowed = int(np.searchsorted(spent, cap, side="right"))
        runs = [
            [reached(s, allowed) for s in scores if (s.label, s.scenario) == (label, where) and s.curve]
            for where in scenarios
        ]
        if all(runs) and allowed:
            means = [statistics.fmean(each) for each in runs]
            cells = [f"{value:.1f}" for value in (*means, statistics.fmean(means))]
            lines.append([label, f"{spent[-1] / 1e6:.1f}", allowed, *cells])
    lines.sort(key=lambda line: -float(line[-1]))
    print(f"At {cap / 1e6:.1f} MB a client, what {args.of} moves in all its rounds:\n")
    table(("method", "MB of its whole run", "rounds", *scenarios, "average"), lines)


if __name__ == "__main__":
    main()
