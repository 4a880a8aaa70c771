"""Where AMN stands: its lead over each baseline, and over the best one of each scenario.

    python benchmarks/standing.py standard_cifar10 [--scores FILE] [--chosen 0,1,2] [--judged 10,11,12]

Seeds ``--chosen`` choose the best baseline of a scenario, AMN is held against it on those of ``--judged``.
A mean is taken of a method only where it has all runs that the mean is of; the others are named below the
table. For the choice a run that diverged counts as 0; a lead over a baseline of which runs diverged is over
its other runs, and says so: left out, it would leave AMN to weaker ones. Accuracies are means of the last
five rounds, with 95 % intervals by Student's t over the seeds. Controls of this project are no baselines.
What is listed apart is marked in the first table and not its best baseline; in the second it may be the best.
``--control`` names the scenarios in which nothing is heterogeneous: they are not in the average.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from report import table
from suite import asked, missing, scenarios, seeds

from amn_mpi.methods.fedavg import CONTROL
from amn_mpi.scores import Board, Difference, Score
from amn_mpi.tables import number, signed

FIGURE, WORST = "mean_last5", "worst10"


@dataclass(frozen=True)
class Rival:
    """The best baseline of a scenario by the seeds of choice; the reference's leads over it on the others."""

    scenario: str
    label: str
    chosen: float  # its mean on the seeds of choice
    lead: Difference
    worst: float  # the reference's worst tenth less its
    diverged: int = 0  # of its runs on the other seeds; the leads are over the rest

    @property
    def behind(self) -> str:
        """Whether the whole interval lies below -0.3."""
        if math.isnan(self.lead.half):
            return "-"
        return "yes" if self.lead.mean + self.lead.half < -0.3 else "no"


def averages(board: Board) -> list[tuple[str, str, str]]:
    """(method, average over the board's scenarios, lead of the reference), the best average first."""
    own = board.averaged(FIGURE, board.reference)
    found = []
    for label in board.labels:
        values = board.averaged(FIGURE, label)
        summary = board.summary(values)
        lead = "" if label == board.reference else signed(board.difference(own, values))
        found.append((summary.mean, label, number(summary), lead))
    return [(label, text, lead) for _, label, text, lead in sorted(found, reverse=True)]


def finished(scores: list[Score], reference: str, label: str, draws: Collection[int]) -> Difference:
    """The reference's lead over what a baseline has finished; of a seed the mean over scenarios."""
    board = Board(scores, reference)
    leads: dict[int, list[float]] = {}
    for where in board.scenarios:
        own, theirs = (board.values(FIGURE, where, who) for who in (reference, label))
        for seed in draws:
            if not math.isnan(theirs.get(seed, math.nan)):
                leads.setdefault(seed, []).append(own[seed] - theirs[seed])
    return board.difference(
        {seed: float(np.mean(each)) for seed, each in leads.items()}, dict.fromkeys(leads, 0.0)
    )


def rivals(
    scores: list[Score], reference: str, chosen: Collection[int], judged: Collection[int]
) -> list[Rival]:
    """One for each scenario in which the reference and the baseline that is chosen have all runs."""
    board, found = Board(scores, reference), []
    baselines = [who for who in board.labels if who != reference and board.aside(who) != CONTROL]
    for where in board.scenarios:
        values = {who: board.values(FIGURE, where, who) for who in baselines}
        means = {
            who: float(np.mean([np.nan_to_num(runs[seed]) for seed in chosen]))
            for who, runs in values.items()
            if set(chosen) <= set(runs)
        }
        if not means:
            continue
        label = max(means, key=lambda who: means[who])
        both = [
            {who: board.values(figure, where, who) for who in (reference, label)}
            for figure in (FIGURE, WORST)
        ]
        if any(not set(judged) <= set(runs) for runs in both[0].values()):
            continue
        left = [seed for seed in judged if not math.isnan(both[0][label][seed])]
        lead, worst = (
            board.difference(*({seed: each[who][seed] for seed in left} for who in (reference, label)))
            for each in both
        )
        found.append(Rival(where, label, means[label], lead, worst.mean, len(judged) - len(left)))
    return found


def named(some: Collection[int]) -> str:
    return ",".join(map(str, sorted(some)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chosen", type=seeds, default="0,1,2", help="seeds that choose the best baselines")
    parser.add_argument("--judged", type=seeds, default="10,11,12", help="seeds on which AMN is held to them")
    args, suite, scores = asked(parser)
    uneven, reference = scenarios(suite, args.control), suite.reference
    lacks = {who: missing(scores, who, uneven, args.judged) for who in suite.trials}
    if lacks[reference]:
        parser.error(f"{reference} on seeds {named(args.judged)}: {lacks[reference]}")
    whole = [s for s in scores if s.seed in args.judged and s.scenario in uneven and not lacks[s.label]]
    board = Board(whole, reference)
    print(f"Average over {', '.join(uneven)}; seeds {named(args.judged)}:\n")
    marks = {who: f" ({board.aside(who)})" for who in board.labels if board.aside(who)}
    lines = averages(board)
    table(
        ("method", "average", f"{reference} ahead by"),
        [(who + marks.get(who, ""), value, lead) for who, value, lead in lines],
    )
    best = next((line for line in lines if line[0] != reference and line[0] not in marks), None)
    if best:
        print(f"The best baseline is {best[0]}, {reference} is ahead of it by {best[2]}.")
    for who, why in lacks.items():
        if why.endswith("diverged"):
            at = [s for s in scores if s.scenario in uneven]
            why += (
                f"; {reference} is ahead of the others by {signed(finished(at, reference, who, args.judged))}"
            )
        if why:
            print(f"{who}: {why}")
    found = rivals(scores, reference, args.chosen, args.judged)
    print(f"\nAgainst the baseline that was best on seeds {named(args.chosen)}, on {named(args.judged)}:\n")
    rows = [
        (
            r.scenario,
            r.label,
            f"{r.chosen:.1f}",
            signed(r.lead) + (f" ({r.diverged} of its runs diverged)" if r.diverged else ""),
            signed(Difference(r.worst, math.nan)),
            r.behind,
        )
        for r in found
    ]
    columns = ("scenario", "best baseline", "it had", "ahead by", "worst tenth", "wholly below -0.3")
    table(columns, rows)
    ahead, all_of_them = sum(r.worst > 0 for r in found), len(scenarios(suite))
    print(f"Worst tenth of the clients ahead in {ahead} of {len(found)} scenarios; there are {all_of_them}.")


if __name__ == "__main__":
    main()
