"""Where AMN stands: its lead over each baseline, and over the best one of each scenario.

    python benchmarks/standing.py standard_cifar10 [--scores FILE] [--chosen 0,1,2] [--judged 10,11,12]

Seeds ``--chosen`` choose the best baseline of a scenario, AMN is held against it on those of ``--judged``.
Accuracies are means of the last five rounds, those of worst tenths are of the last one. ± of an accuracy is
the standard deviation over the seeds; that of a lead is its 95 % interval by Student's t over them.

A method has to have all runs that a table is of; those that lack some are named below. A run that diverged
counts as 0 where a baseline is chosen. In the first table a scenario in which a baseline diverged is left out
of its average and of AMN's lead over it, for all seeds, and is named: left out itself, the baseline would
leave AMN to weaker ones. Controls of this project are no baselines. What is listed apart is marked in the
first table and not its best baseline; in the second it may be the best. ``--control`` names the scenarios in
which nothing is heterogeneous: they are not in the average.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from report import table
from suite import asked, missing, scenarios, seeds

from amn_mpi.methods.fedavg import CONTROL
from amn_mpi.scores import Board, Difference, Score, Summary
from amn_mpi.tables import number, signed

FIGURE, WORST = "mean_last5", "worst10"


@dataclass(frozen=True)
class Average:
    """A method's average over scenarios, and the reference's lead over it, both without those ``lost``."""

    label: str
    own: Summary
    lead: Difference
    lost: tuple[str, ...]  # scenarios in which it diverged


@dataclass(frozen=True)
class Rival:
    """The best baseline of a scenario by the seeds of choice; the reference's leads over it on the others."""

    scenario: str
    label: str
    chosen: float  # its mean on the seeds of choice
    lead: Difference  # over its runs that have not diverged
    worst: Difference  # of the worst tenths

    @property
    def behind(self) -> str:
        """Whether the whole interval lies below -0.3."""
        if math.isnan(self.lead.half):
            return "-"
        return "yes" if self.lead.mean + self.lead.half < -0.3 else "no"


def averages(board: Board) -> list[Average]:
    """Of all methods, the one over which the lead is least first, then the reference."""
    found = []
    for label in board.labels:
        lost = tuple(
            s for s in board.scenarios if any(map(math.isnan, board.values(FIGURE, s, label).values()))
        )
        left = [s for s in board.scenarios if s not in lost]
        own, theirs = (mean(board, who, left) for who in (board.reference, label))
        found.append(Average(label, board.summary(theirs), board.difference(own, theirs), lost))
    return sorted(
        found, key=lambda one: (math.isnan(one.lead.mean), one.lead.mean, one.label == board.reference)
    )


def mean(board: Board, label: str, where: Sequence[str]) -> dict[int, float]:
    """By seed, the mean over some scenarios."""
    each = [board.values(FIGURE, scenario, label) for scenario in where]
    return {seed: float(np.mean([runs[seed] for runs in each])) for seed in (each[0] if each else ())}


def baselines(scores: list[Score], reference: str) -> list[str]:
    board = Board(scores, reference)
    return [who for who in board.labels if who != reference and board.aside(who) != CONTROL]


def rivals(
    scores: list[Score], reference: str, chosen: Collection[int], judged: Collection[int]
) -> list[Rival]:
    """One for each scenario in which the reference and the baseline that is chosen have all runs."""
    board, found = Board(scores, reference), []
    for where in board.scenarios:
        values = {who: board.values(FIGURE, where, who) for who in baselines(scores, reference)}
        means = {
            who: float(np.mean([np.nan_to_num(runs[seed]) for seed in chosen]))
            for who, runs in values.items()
            if set(chosen) <= set(runs)
        }
        if not means:
            continue
        label = max(means, key=lambda who: means[who])
        both = [
            [board.values(figure, where, who) for who in (reference, label)] for figure in (FIGURE, WORST)
        ]
        if any(not set(judged) <= set(runs) for runs in both[0]):
            continue
        lead, worst = (
            board.difference(*({seed: runs[seed] for seed in judged} for runs in each)) for each in both
        )
        found.append(Rival(where, label, means[label], lead, worst))
    return found


def choices(
    scores: list[Score], reference: str, where: Sequence[str], chosen: Collection[int]
) -> dict[tuple[str, ...], list[str]]:
    """Baselines that have all runs of choice -> the scenarios in which it is they."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in where:
        whole = [who for who in baselines(scores, reference) if not missing(scores, who, [name], chosen)]
        found.setdefault(tuple(whole), []).append(name)
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
    own = [s for s in scores if s.label == reference and s.scenario in uneven and s.seed in args.judged]
    if lacks[reference] or any(math.isnan(s.figures[FIGURE]) for s in own):
        parser.error(f"{reference} on seeds {named(args.judged)}: {lacks[reference] or 'a run diverged'}")
    whole = [s for s in scores if s.seed in args.judged and s.scenario in uneven and not lacks[s.label]]
    print(f"Average over {', '.join(uneven)}; seeds {named(args.judged)}:\n")
    _show_averages(Board(whole, reference))
    for who, why in lacks.items():
        if why:
            print(f"{who}: {why}")
    print(f"\nAgainst the baseline that was best on seeds {named(args.chosen)}, on {named(args.judged)}:\n")
    _show_rivals(rivals(scores, reference, args.chosen, args.judged), reference, scenarios(suite))
    for names, where in choices(scores, reference, scenarios(suite), args.chosen).items():
        print(f"Chosen of {', '.join(names) or 'none'} in {', '.join(where)}.")


def _show_averages(board: Board) -> None:
    found = averages(board)
    marks = {who: f" ({board.aside(who)})" for who in board.labels if board.aside(who)}
    rows = [
        (
            one.label + marks.get(one.label, ""),
            number(one.own),
            "" if one.label == board.reference else signed(one.lead),
            ", ".join(one.lost),
        )
        for one in found
    ]
    columns = (
        "method",
        "average ± sd",
        f"{board.reference} ahead by ± 95 %",
        "without, for it diverged there",
    )
    table(columns, rows)
    best = next((one for one in found if one.label != board.reference and one.label not in marks), None)
    if best:
        print(f"The best baseline is {best.label}, {board.reference} is ahead of it by {signed(best.lead)}.")


def _show_rivals(found: list[Rival], reference: str, every: list[str]) -> None:
    rows = [
        (r.scenario, r.label, f"{r.chosen:.1f}", signed(r.lead), signed(r.worst), r.behind) for r in found
    ]
    ahead = f"{reference} ahead by ± 95 %"
    columns = ("scenario", "best baseline", "it had", ahead, "worst tenth, last round", "wholly below -0.3")
    table(columns, rows)
    better = sum(r.worst.mean > 0 for r in found)
    print(f"Worst tenth of the clients ahead in {better} of {len(found)} scenarios; there are {len(every)}.")
    if left := [name for name in every if name not in {r.scenario for r in found}]:
        print(f"Runs are missing in {', '.join(left)}.")


if __name__ == "__main__":
    main()
