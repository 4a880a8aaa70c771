"""Accuracy at equal bytes: what methods reach once a client has moved as much as in FedAvg's run.

    python benchmarks/equal_bytes.py standard_fashion_mnist [--scores FILE] [--seeds 10,11,12] [--of fedavg]

Bytes are those that one client must receive and send, counted from what each method moves (``Wire``), four
for a number: the same on any number of ranks, where one rank sends nothing. Evaluation adds none. Accuracies
are of single rounds, the last kept one (``at5``, ``at10``, ... in scores.csv) that the bytes allow, averaged
over the seeds. The average is over the scenarios that ``--control`` does not name. Methods that lack a run,
or of which one diverged, are named below the table.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from report import table
from suite import asked, missing, scenarios, seeds

from amn_mpi import budget, methods
from amn_mpi.config import Config
from amn_mpi.data import Federation
from amn_mpi.methods.base import Setting
from amn_mpi.scores import Score

FLOAT = 4
# What a client sends, where ranks send more: IFCA's trains one of the groups' models (algorithm 1).
SENT = {"ifca": 1}
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
    """Bytes that a client has received and sent after rounds 1, 2, ..., shape (rounds,).

    Where a round has a part of the clients, the mean over all of them.
    """
    fed = federation(config)
    setting = Setting(budget.layout_of(config, fed), fed.train, config.seed, config.local)
    method = methods.get(config.method.name)(config.method, setting)
    wire, part = method.wire, method.part.size
    down = 0 if wire.down == "none" else wire.received * part
    numbers = method.features + len(wire.figures)
    rounds = range(1, config.rounds + 1)
    sent = [SENT.get(config.method.name, method.returned(t)) for t in rounds]
    up = [0 if wire.up == "none" else each * part + numbers for each in sent]
    return FLOAT * config.cohort * np.cumsum([down + each for each in up])


def reached(score: Score, allowed: int) -> float:
    """Accuracy of the last kept round up to the one that the bytes allow."""
    return score.curve[max(at for at in score.curve if at <= allowed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=seeds, default="", help="by default the comparison's")
    parser.add_argument("--of", default="fedavg", help="the method whose whole run sets the bytes")
    args, suite, found = asked(parser)
    scores = [score for score in found if score.curve]
    configs = {cell.label: cell.config for cell in suite.cells}
    where, draws = scenarios(suite), args.seeds or suite.seeds
    cap = moved(configs[args.of])[-1]
    lines, lacks = [], []
    for label, config in configs.items():
        spent = moved(config)
        allowed = int(np.searchsorted(spent, cap, side="right"))
        why = missing(scores, label, where, draws)
        if not why and any(min(s.curve) > allowed for s in scores if s.label == label):
            why = f"the bytes are those of {allowed} rounds, before the first that is kept"
        if why:
            lacks.append(f"{label}: {why}")
            continue
        curves = {(s.scenario, s.seed): reached(s, allowed) for s in scores if s.label == label}
        means = {name: statistics.fmean(curves[name, seed] for seed in draws) for name in where}
        average = statistics.fmean(means[name] for name in scenarios(suite, args.control))
        cells = [f"{value:.1f}" for value in (*means.values(), average)]
        lines.append([label, f"{spent[-1] / 1e6:.1f}", allowed, *cells])
    lines.sort(key=lambda line: -float(line[-1]))
    print(f"At {cap / 1e6:.1f} MB a client, what {args.of} moves in all its rounds:\n")
    table(("method", "MB of its whole run", "rounds", *where, "average"), lines)
    for line in lacks:
        print(line)


if __name__ == "__main__":
    main()
