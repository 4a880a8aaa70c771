"""The critical-difference diagram: methods along their mean ranks, bars over those that do not differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amn_mpi.report.significance import Ranking
from amn_mpi.report.style import INK, Width, figure, series, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

LINE, BAR = 0.17, 0.09  # inches from a name to the next, from a bar to the next


def critical_difference(ranking: Ranking, width: Width) -> Figure | None:
    """Best at the left; the better half is named at the left, the others at the right."""
    if not ranking.testable:
        return None
    names = list(ranking.ranks)
    left = names[: (len(names) + 1) // 2]
    right = names[len(left) :][::-1]
    levels = stacked(ranking)
    below = 0.12 + BAR * (max(levels, default=-1) + 1) + 0.12
    axis = 0.75
    height = axis + below + LINE * len(left) + 0.05
    fig = figure(width, height)
    fig.set_layout_engine("none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, width.inches)
    ax.set_ylim(height, 0)  # inches from the top
    sides = {-1: left, 1: right}
    top = axis + below + LINE / 2
    written = {
        name: _write(ax, name, ranking.ranks[name], top + LINE * k, side, width)
        for side, listed in sides.items()
        for k, name in enumerate(listed)
    }
    room = {name: text.get_window_extent().width / fig.dpi + 0.12 for name, text in written.items()}
    margin = margin_for(ranking.ranks, room, width.inches)
    scale = (width.inches - 2 * margin) / (len(names) - 1)
    places = {name: margin + (rank - 1) * scale for name, rank in ranking.ranks.items()}
    _axis(ax, len(names), margin, scale, axis)
    _ruler(ax, ranking.critical, margin, scale)
    for group, level in zip(ranking.alike(), levels):
        y = axis + 0.12 + BAR * level
        ends = places[group[0]] - 0.04, places[group[-1]] + 0.04
        ax.plot(ends, (y, y), color=series(1), lw=2.5, solid_capstyle="butt")
    for side, listed in sides.items():
        for name in listed:
            _join(ax, written[name], places[name], axis, side)
    return fig


def margin_for(ranks: dict[str, float], room: dict[str, float], inches: float) -> float:
    """The smallest one from which each name's line comes down beside the name, not through it."""
    last, margin = len(ranks) - 1, 0.6
    for k, (name, rank) in enumerate(ranks.items()):
        along = (rank - 1 if 2 * k <= last else len(ranks) - rank) / last  # share of the axis to its end
        if along < 0.45:
            margin = max(margin, (room[name] - along * inches) / (1 - 2 * along))
    return min(margin, 0.4 * inches)


def stacked(ranking: Ranking) -> list[int]:
    """For each group that a bar joins the level of its bar: those of one level do not touch."""
    names, found = list(ranking.ranks), []
    ends: list[int] = []  # of the last bar of each level
    for group in ranking.alike():
        first, last = names.index(group[0]), names.index(group[-1])
        level = next((k for k, end in enumerate(ends) if end < first), len(ends))
        ends[level : level + 1] = [last]
        found.append(level)
    return found


def _axis(ax: Axes, count: int, margin: float, scale: float, y: float) -> None:
    ax.plot((margin, margin + scale * (count - 1)), (y, y), color=INK["dim"], lw=1)
    step = math.ceil(0.22 / scale)
    for rank in range(1, count + 1):
        x = margin + (rank - 1) * scale
        ax.plot((x, x), (y - 0.06, y), color=INK["dim"], lw=1)
        if (rank - 1) % step == 0:
            ax.text(x, y - 0.09, str(rank), ha="center", va="bottom", color=INK["dim"])
    ax.text(margin - 0.12, y - 0.09, "best", ha="right", va="bottom", color=INK["dim"])


def _ruler(ax: Axes, critical: float, margin: float, scale: float) -> None:
    ends = margin, margin + critical * scale
    ax.plot(ends, (0.32, 0.32), color=series(1), lw=1)
    for x in ends:
        ax.plot((x, x), (0.28, 0.36), color=series(1), lw=1)
    ax.text(margin, 0.22, f"CD = {critical:.2f}", ha="left", va="bottom")


def _write(ax: Axes, name: str, rank: float, y: float, side: int, width: Width) -> Text:
    """At the left margin for side -1, else at the right one."""
    told = short(name, 16 if width.ticks > 20 else 12)
    text = f"{told} {rank:.2f}" if side > 0 else f"{rank:.2f} {told}"
    edge = 0.05 if side < 0 else width.inches - 0.05
    return ax.text(edge, y, text, ha="left" if side < 0 else "right", va="center")


def _join(ax: Axes, text: Text, x: float, axis: float, side: int) -> None:
    """A line from the axis down to the name's line and out to the name."""
    extent = text.get_window_extent().transformed(ax.transData.inverted())
    end = extent.x1 + 0.05 if side < 0 else extent.x0 - 0.05
    y = text.get_position()[1]
    ax.plot((x, x, end), (axis, y, y), color=INK["dim"], lw=0.8)
