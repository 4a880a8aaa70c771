"""Where AMN stands: its lead over the best single baseline, and over the best one of each scenario.

    python benchmarks/standing.py standard_cifar10 [--scores FILE] [--chosen 0,1,2] [--judged 10,11,12]

Seeds ``--chosen`` choose the best baseline of a scenario, AMN is held against it on those of ``--judged``.
Accuracies are means of the last five rounds, with 95 % intervals by Student's t over the seeds. Controls of
this project are no baselines. What is listed apart is marked in the first table, and is a baseline in the
second. ``--control`` names the scenarios in which nothing is heterogeneous: they are not in the average.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from report import table
from suite import asked, seeds

from amn_mpi.methods.fedavg import CONTROL
from amn_mpi.scores import Board
from amn_mpi.tables import number, signed

FIGURE, WORST = "mean_last5", "worst10"


@dataclass(frozen=True)
class Rival:
    """The best baseline of a scenario by the seeds of choice, and AMN's leads over it on the others."""

    scenario: str
    label: str
    chosen: float  # its mean on the seeds of choice
    lead: str
    worst: float  # AMN's worst tenth less its
    behind: bool  # whether the whole interval lies below -0.3


def averages(board: Board) -> list[tuple[str, str, str]]:
    """(method, average over the board's scenarios, lead of the reference), the best average first."""
    own, found = board.averaged(FIGURE, board.reference), []
    for label in board.labels:
        values = board.averaged(FIGURE, label)
        summary = board.summary(values)
        if math.isnan(summary.mean):
            continue
        lead = "" if label == board.reference else signed(board.difference(own, values))
        found.append((summary.mean, label, number(summary), lead))
    return [(label, text, lead) for _, label, text, lead in sorted(found, reverse=True)]


def rivals(chosen: Board, judged: Board) -> list[Rival]:
    """One for each scenario in which a baseline has run on the seeds of choice."""
    amn, found = judged.reference, []
    baselines = [who for who in chosen.labels if who != amn and chosen.aside(who) != CONTROL]
    for where in judged.scenarios:
        means = {who: chosen.summary(chosen.values(FIGURE, where, who)).mean for who in baselines}
        means = {who: mean for who, mean in means.items() if not math.isnan(mean)}
        if not means:
            continue
        label = max(means, key=lambda who: means[who])
        lead, worst = (
            judged.difference(judged.values(figure, where, amn), judged.values(figure, where, label))
            for figure in (FIGURE, WORST)
        )
        behind = lead.mean + lead.half < -0.3
        found.append(Rival(where, label, means[label], signed(lead), worst.mean, behind))
    return found


def named(some: set[int]) -> str:
    return ",".join(map(str, sorted(some)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chosen", type=seeds, default="0,1,2", help="seeds that choose the best baselines")
    parser.add_argument("--judged", type=seeds, default="10,11,12", help="seeds on which AMN is held to them")
    parser.add_argument("--control", default="iid", help="scenarios that are not in the average")
    args, suite, scores = asked(parser)
    chosen, judged = ([s for s in scores if s.seed in some] for some in (args.chosen, args.judged))
    if not judged:
        parser.error(f"--judged {named(args.judged)}: no run has one of these seeds")
    uneven = [score for score in judged if score.scenario not in args.control.split(",")]
    board = Board(uneven, suite.reference)
    print(f"Average over {', '.join(board.scenarios)}; seeds {named(args.judged)}:\n")
    marks = {who: f" ({board.aside(who)})" for who in board.labels if board.aside(who)}
    table(
        ("method", "average", f"{board.reference} ahead by"),
        [(who + marks.get(who, ""), value, lead) for who, value, lead in averages(board)],
    )
    found = rivals(Board(chosen, suite.reference), Board(judged, suite.reference))
    print(
        f"Against the baseline that was best on seeds {named(args.chosen)}, on seeds {named(args.judged)}:\n"
    )
    rows = [
        (r.scenario, r.label, f"{r.chosen:.1f}", r.lead, f"{r.worst:+.1f}", "yes" if r.behind else "no")
        for r in found
    ]
    columns = ("scenario", "best baseline", "it had", "ahead by", "worst tenth", "wholly below -0.3")
    table(columns, rows)
    ahead = sum(r.worst > 0 for r in found)
    print(f"Worst tenth of the clients ahead in {ahead} of {len(found)} scenarios.")


if __name__ == "__main__":
    main()
