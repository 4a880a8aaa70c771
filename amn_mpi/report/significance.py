"""Whether methods differ over several runs (Demsar 2006): Friedman's test, then Nemenyi's. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from amn_mpi import scores
from amn_mpi.scores import Board

LEVEL = 0.05
Block = tuple[str, int]  # a scenario and a seed


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of k methods over N blocks.

    Attributes:
        ranks: by name, the best first; 1 is best; NaN without blocks.
        left_out: of the methods that have run in fewer than half of all blocks, in how many.
        unused: blocks in which one of the ranked methods has not run.
    """

    ranks: dict[str, float]
    blocks: int
    left_out: dict[str, int]
    unused: int = 0

    @property
    def leaders(self) -> list[str]:
        """Who has the best rank: several where they tie."""
        return [name for name, rank in self.ranks.items() if rank == min(self.ranks.values())]

    @property
    def testable(self) -> bool:
        return len(self.ranks) >= 3 and self.blocks >= 2

    @property
    def critical(self) -> float:
        """Nemenyi's critical difference: mean ranks this far apart differ."""
        k = len(self.ranks)
        return nemenyi(k) * math.sqrt(k * (k + 1) / (6 * self.blocks))

    @property
    def chi2(self) -> float:
        """Friedman's statistic, as Demsar gives it."""
        k = len(self.ranks)
        squares = sum(rank**2 for rank in self.ranks.values())
        return 12 * self.blocks / (k * (k + 1)) * (squares - k * (k + 1) ** 2 / 4)

    @property
    def p(self) -> float:
        """Chance of such a statistic where all methods are alike."""
        return chi2_tail(self.chi2, len(self.ranks) - 1)

    def alike(self) -> list[list[str]]:
        """The largest groups of neighbours, two or more, in which no two differ."""
        names, found, reached = list(self.ranks), [], 0
        for first, name in enumerate(names):
            last = first
            while last + 1 < len(names) and self.ranks[names[last + 1]] - self.ranks[name] < self.critical:
                last += 1
            if last > max(first, reached):
                found.append(names[first : last + 1])
                reached = last
        return found


def rank(blocks: Mapping[Block, Mapping[str, float]]) -> Ranking:
    """Rank methods in each block in which all have run; higher is better, ties share, NaN is last.

    Args:
        blocks: block -> method -> figure.
    """
    runs: dict[str, int] = {}
    for values in blocks.values():
        for name in values:
            runs[name] = runs.get(name, 0) + 1
    names = [name for name, count in runs.items() if 2 * count >= len(blocks)]
    whole = [values for values in blocks.values() if all(name in values for name in names)]
    total = dict.fromkeys(names, 0.0)
    for values in whole:
        for name, place in scores.ranks({name: values[name] for name in names}).items():
            total[name] += place
    means = {name: total[name] / len(whole) if whole else math.nan for name in names}
    left_out = {name: count for name, count in runs.items() if name not in names}
    best_first = dict(sorted(means.items(), key=lambda item: item[1]))
    return Ranking(best_first, len(whole), left_out, len(blocks) - len(whole))


def of_board(board: Board, figure: str) -> Ranking:
    """Of the methods that are not listed apart, over scenarios and seeds."""
    blocks: dict[Block, dict[str, float]] = {}
    for scenario in board.scenarios:
        for label in board.ranked():
            for seed, value in board.values(figure, scenario, label).items():
                blocks.setdefault((scenario, seed), {})[label] = value
    return rank(blocks)


@cache
def nemenyi(methods: int) -> float:
    """The studentized range's quantile at 5 % for so many methods, over the root of 2."""
    low, high = 0.0, 20.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if range_cdf(middle, methods) < 1 - LEVEL else (low, middle)
    return low / math.sqrt(2)


def range_cdf(width: float, count: int) -> float:
    """P(largest - smallest <= width) among ``count`` standard normal numbers."""
    step, total = 0.05, 0.0
    for k in range(-160, 161):  # the rule of trapezoids: exact to 1e-12 for so smooth a function
        z = k * step
        inside = (math.erf((z + width) / math.sqrt(2)) - math.erf(z / math.sqrt(2))) / 2
        total += math.exp(-z * z / 2) * inside ** (count - 1)
    return count * step * total / math.sqrt(2 * math.pi)


def chi2_tail(value: float, degrees: int) -> float:
    """P(chi-squared >= value)."""
    half = max(value, 0.0) / 2
    odd = degrees % 2
    total = math.erfc(math.sqrt(half)) if odd else 0.0
    term = math.exp(-half) * (math.sqrt(half) / math.gamma(1.5) if odd else 1.0)
    for k in range(degrees // 2):
        total += term
        term *= half / (k + (1.5 if odd else 1.0))
    return min(1.0, total)
