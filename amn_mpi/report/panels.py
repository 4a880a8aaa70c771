"""Figures of a comparison with one panel a scenario: what accuracy costs, and how it grows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amn_mpi.report import labels
from amn_mpi.report.comparison import Comparison
from amn_mpi.report.figures import amount, whole
from amn_mpi.report.style import INK, Width, figure, series, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"sent": "bytes sent by all ranks", "seconds": "seconds of training, all ranks"}
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Point:
    """A method in a scenario: means over its finished seeds."""

    label: str
    cost: float
    accuracy: float


def points(found: Comparison, scenario: str, cost: str) -> list[Point]:
    """Of the methods with a known cost; one of which a run diverged has none."""
    listed = []
    for label in found.board.labels:
        runs = found.of(scenario, label)
        spent = [getattr(run, cost) for run in runs]
        if runs and None not in spent:
            accuracy = statistics.fmean(run.score.figures["mean_last5"] for run in runs)
            listed.append(Point(label, statistics.fmean(spent), accuracy))
    return listed


def front(listed: list[Point]) -> list[Point]:
    """Those that no other beats in cost or accuracy without losing in the other, the cheapest first."""
    best: list[Point] = []
    for point in sorted(listed, key=lambda p: (p.cost, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def floor(values: list[float]) -> float:
    """From where on accuracies are worth their room: lower ones would press the others together."""
    ordered = sorted(values)
    upper = ordered[len(ordered) // 3 :]
    span = upper[-1] - upper[0]
    if len(ordered) < 6 or 3 * span >= ordered[-1] - ordered[0]:
        return ordered[0]
    return max(ordered[0], upper[0] - max(span, 1.0))


def against(found: Comparison, cost: str, width: Width) -> Figure | None:
    """Accuracy over what it costs; the Pareto front is a line with filled marks.

    Args:
        cost: a key of COSTS.
    """
    shown = {scenario: points(found, scenario, cost) for scenario in found.board.scenarios}
    shown = {scenario: listed for scenario, listed in shown.items() if any(p.cost > 0 for p in listed)}
    if not shown:
        return None
    most = max(map(len, shown.values()))
    fig, axes = _panels(list(shown), width, max(2.2, 0.16 * most))
    named = []
    for k, (ax, listed) in enumerate(zip(axes, shown.values())):
        named.append(_scatter(ax, listed, found))
        _costs(ax, [p.cost for p in listed], cost)
        _label(ax, k, len(axes), width, COSTS[cost])
    labels.name_all(fig, named)
    return fig


def _scatter(ax: Axes, listed: list[Point], found: Comparison) -> labels.Panel:
    """The points; their names are still to be written."""
    low, best = floor([p.accuracy for p in listed]), front(listed)
    edge = [(p.cost, p.accuracy) for p in best if p.accuracy >= low]
    stairs = [step for (_, y), (x, high) in zip(edge, edge[1:]) for step in ((x, y), (x, high))]
    path = [*edge[:1], *stairs]
    ax.plot([x for x, _ in path], [y for _, y in path], color=INK["dim"], lw=1, ls=":")
    marks = []
    for point in [*best, *(p for p in listed if p not in best)]:
        colour, under = series(found.board.labels.index(point.label)), point.accuracy < low
        face = colour if point in best else "none"
        y, name = max(point.accuracy, low), short(point.label)
        ax.plot(point.cost, y, "v" if under else "o", ms=5, mfc=face, mec=colour, mew=1.2, zorder=3)
        marks.append(labels.Mark(point.cost, y, f"{name} {point.accuracy:.1f}" if under else name, colour))
    ax.margins(0.14, 0.12)
    return labels.Panel(ax, marks, path)


def _costs(ax: Axes, spent: list[float], cost: str) -> None:
    """The axis of the costs: by powers where they lie far apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if min(spent) > 0 and max(spent) > 5 * min(spent):
        ax.set_xscale("log")
        wide = max(spent) > 100 * min(spent)
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    told = amount if cost == "sent" else "{:g}".format
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))


def curves(found: Comparison, width: Width) -> Figure | None:
    """Mean accuracy over rounds, a line a method; those of ``squeezed`` end where the others do."""
    board, shown = found.board, _curves(found)
    if not shown:
        return None
    names = [name for name in board.labels if any(name in each for each in shown.values())]
    across = min(len(names), 6 if width.ticks > 20 else 2)
    fig, axes = _panels(list(shown), width, 2.0, 0.17 * -(-len(names) // across))
    handles = {}
    for k, (ax, each) in enumerate(zip(axes, shown.values())):
        end = min(map(max, each.values()))
        for name, values in each.items():
            n, dot = board.labels.index(name), "o" if len(values) == 1 else ""
            style: dict[str, Any] = {"color": series(n), "ls": DASHES[n // 8 % 4], "lw": 1.2}
            at = [round * end / max(values) for round in values]
            (handles[name],) = ax.plot(at, list(values.values()), marker=dot, **style)
        last = [list(values.values())[-1] for values in each.values()]
        if (low := floor(last)) > min(last):
            ax.set_ylim(bottom=max(0.0, 2 * low - max(last)))
        whole(ax)
        _label(ax, k, len(axes), width, "round")
    fig.legend([handles[n] for n in names], [short(n) for n in names], loc="outside upper left", ncols=across)
    return fig


def squeezed(found: Comparison) -> dict[str, int]:
    """Methods with more rounds than others of their scenario -> how many: fewer clients train in each."""
    return {
        name: max(values)
        for lines in _curves(found).values()
        for name, values in lines.items()
        if max(values) > min(map(max, lines.values()))
    }


def _curves(found: Comparison) -> dict[str, dict[str, dict[int, float]]]:
    """By scenario and method, of those that have one."""
    board = found.board
    every = {s: {name: curve(found, s, name) for name in board.labels} for s in board.scenarios}
    lines = {s: {name: line for name, line in each.items() if line} for s, each in every.items()}
    return {s: each for s, each in lines.items() if each}


def curve(found: Comparison, scenario: str, label: str) -> dict[int, float]:
    """Round -> mean over the seeds, for the rounds that all of them have evaluated."""
    seeds = [run.curve for run in found.of(scenario, label) if run.curve]
    common = set.intersection(*map(set, seeds)) if seeds else set()
    return {round: statistics.fmean(seed[round] for seed in seeds) for round in sorted(common)}


def _panels(scenarios: list[str], width: Width, high: float, above: float = 0.0) -> tuple[Figure, list[Axes]]:
    """One for each scenario, side by side where there is room."""
    across = min(len(scenarios), 2 if width.ticks > 20 else 1)
    down = -(-len(scenarios) // across)
    fig = figure(width, down * (high + 0.25) + 0.35 + above)
    axes = [fig.add_subplot(down, across, k + 1) for k in range(len(scenarios))]
    for ax, scenario in zip(axes, scenarios):
        ax.set_title(short(scenario, 40), loc="left")
        ax.grid(visible=True, axis="both")
        ax.tick_params(length=0, which="both")
    return fig, axes


def _label(ax: Axes, k: int, count: int, width: Width, text: str) -> None:
    """Axes that stand at the outside say what they show."""
    across = 2 if width.ticks > 20 and count > 1 else 1
    if k >= count - across:
        ax.set_xlabel(text)
    if k % across == 0:
        ax.set_ylabel("test accuracy, %")
