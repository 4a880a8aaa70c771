"""Accuracy at equal bytes: what methods reach once a client has moved as much as in FedAvg's run.

    python benchmarks/equal_bytes.py standard_fashion_mnist [--scores FILE] [--seeds 10,11,12] [--of fedavg]

Bytes are those that one client must receive and send, counted from what each method moves (``Wire``), four
for a number, eight for a figure: the same on any number of ranks, where one rank sends nothing. Evaluation
adds none. Accuracies are of single rounds, the last kept one (``at5``, ``at10``, ... in scores.csv) that the
bytes allow, averaged over the seeds. The average is over the scenarios that ``--control`` does not name.
Methods that move less in their whole run stand with what they reached at its end. Methods that lack a run are
named below the table. A run that diverged is left out of its scenario's mean, which is marked with a star, as
is the average. What tables list apart is marked, as in ``standing.py``.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass

import numpy as np
from report import table
from suite import asked, missing, scenarios, seeds

from amn_mpi import budget, methods
from amn_mpi.config import Config
from amn_mpi.data import Federation
from amn_mpi.methods.base import Setting
from amn_mpi.scores import Board, Score

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
    numbers = method.features + 2 * len(wire.figures)  # these in 64 bits
    rounds = range(1, config.rounds + 1)
    sent = [SENT.get(config.method.name, method.returned(t)) for t in rounds]
    up = [0 if wire.up == "none" else each * part + numbers for each in sent]
    return FLOAT * config.cohort * np.cumsum([down + each for each in up])


def reached(score: Score, allowed: int) -> float:
    """Accuracy of the last kept round up to the one that the bytes allow."""
    return score.curve[max(at for at in score.curve if at <= allowed)]


@dataclass(frozen=True)
class Line:
    """A method at equal bytes.

    Attributes:
        spent: bytes of its whole run. rounds: that the bytes allow. at: those of the accuracies, one or more.
        cells: means by scenario, then their average, as text.
    """

    label: str
    spent: float
    rounds: int
    at: list[int]
    average: float
    cells: list[str]


def line(runs: list[Score], config: Config, cap: float, control: list[str]) -> Line | str:
    """Of one method's runs; why there is none where a run has no kept round that the bytes allow.

    Args:
        control: scenarios that are not in the average.
    """
    spent = moved(config)
    allowed = int(np.searchsorted(spent, cap, side="right"))
    going = [run for run in runs if not math.isnan(run.figures["mean_last5"])]
    if bare := sum(not run.curve for run in going):
        return f"{bare} of {len(runs)} runs have no kept rounds"
    if any(min(run.curve) > allowed for run in going):
        return f"the bytes are those of {allowed} rounds, before the first that is kept"
    means, star = {}, {}
    for name in dict.fromkeys(run.scenario for run in runs):
        left = [reached(run, allowed) for run in going if run.scenario == name]
        means[name] = statistics.fmean(left) if left else math.nan
        star[name] = "*" if len(left) < sum(run.scenario == name for run in runs) else ""
    uneven = [name for name in means if name not in control]
    average = statistics.fmean(means[name] for name in uneven)
    cells = [f"{means[name]:.1f}{star[name]}" for name in means]
    cells.append(f"{average:.1f}" + max(star[name] for name in uneven))
    at = sorted({max(k for k in run.curve if k <= allowed) for run in going})
    return Line(runs[0].label, spent[-1], allowed, at, average, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=seeds, help="by default the comparison's")
    parser.add_argument("--of", default="fedavg", help="the method whose whole run sets the bytes")
    args, suite, scores = asked(parser)
    configs = {cell.label: cell.config for cell in suite.cells}
    where, draws = scenarios(suite), args.seeds or suite.seeds
    if args.of not in configs:
        parser.error(f"--of {args.of}: valid are {', '.join(configs)}")
    if (data := configs[args.of].data.name) not in SHAPES:
        parser.error(f"data.name = {data}: valid are {', '.join(SHAPES)}")
    cap, board = moved(configs[args.of])[-1], Board(scores, suite.reference)
    lines, lacks = [], []
    for label, config in configs.items():
        runs = [s for name in where for s in scores if (s.label, s.scenario) == (label, name)]
        why = missing(scores, label, where, draws)
        found = why or line([run for run in runs if run.seed in draws], config, cap, args.control.split(","))
        if isinstance(found, str):
            lacks.append(f"{label}: {found}")
        else:
            lines.append(found)
    lines.sort(key=lambda one: (math.isnan(one.average), -one.average))
    seeds_text = ",".join(map(str, sorted(draws)))
    print(f"At no more than {cap / 1e6:.1f} MB a client, which {args.of} moves in all; seeds {seeds_text}:\n")
    rows = [
        (
            one.label + (f" ({board.aside(one.label)})" if board.aside(one.label) else ""),
            f"{one.spent / 1e6:.1f}",
            one.rounds,
            ", ".join(map(str, one.at)),
            *one.cells,
        )
        for one in lines
    ]
    table(("method", "MB of its whole run", "rounds it may have", "accuracy after", *where, "average"), rows)
    for told in lacks:
        print(told)
    if any("*" in cell for one in lines for cell in one.cells):
        print("* without runs that diverged")


if __name__ == "__main__":
    main()
