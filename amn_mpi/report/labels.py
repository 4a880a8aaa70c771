"""Names beside the points of a figure, so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amn_mpi.report.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TURNS = (0, 180, 90, 270, 45, 135, 225, 315, 22, 158, 202, 338, 68, 112, 248, 292)  # degrees, best first
NEAR = 7.0  # points from the mark to its name's nearest end; beyond that a line leads there
Box = tuple[float, float, float, float]  # left, low, right, high; points of the page


@dataclass(frozen=True)
class Mark:
    """A point of the axes, what it is called, and in which colour."""

    x: float
    y: float
    name: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """``marks``: the first ones choose first. ``path``: corners of a line that names keep off."""

    ax: Axes
    marks: list[Mark]
    path: list[tuple[float, float]]


def name_all(figure: Figure, panels: list[Panel]) -> None:
    """Write the names. Call it last: it fixes the layout."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    scale = 72.0 / figure.dpi
    for panel in panels:
        frame = panel.ax.get_window_extent()
        room: Box = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
        at = _placed(panel.ax, [(mark.x, mark.y) for mark in panel.marks], scale)
        path = _placed(panel.ax, panel.path, scale)
        taken = [_around([point], 3) for point in at] + [_around(pair, 1) for pair in zip(path, path[1:])]
        for mark, (x, y) in zip(panel.marks, at):
            size = _size(panel.ax, mark.name, scale)
            dx, dy, box = _free(x, y, *size, room, taken)
            taken.append(box)
            _write(panel.ax, mark, dx, dy, *size)


def _placed(ax: Axes, points: list[tuple[float, float]], scale: float) -> list[tuple[float, float]]:
    """From the axes' units to points of the page."""
    if not points:
        return []
    return [(scale * x, scale * y) for x, y in ax.transData.transform(points)]


def _around(points: Sequence[tuple[float, float]], pad: float) -> Box:
    across, up = zip(*points)
    return min(across) - pad, min(up) - pad, max(across) + pad, max(up) + pad


def _size(ax: Axes, name: str, scale: float) -> tuple[float, float]:
    text = ax.text(0, 0, name, fontsize="small")
    extent = text.get_window_extent()
    text.remove()
    return extent.width * scale, extent.height * scale


def _free(
    x: float, y: float, width: float, height: float, room: Box, taken: list[Box]
) -> tuple[float, float, Box]:
    """Where the name's middle goes, from the mark, in points: the nearest place that covers least."""
    best: tuple[float, float, float, Box] | None = None
    for far in range(0, 170, 6):
        for turn in TURNS:
            c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
            dx, dy = c * (5 + far + width / 2), s * (3 + far + height / 2)
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            covered = sum(_overlap(box, other) for other in taken)
            outside = width * height - _overlap(box, room)
            cost = covered + 3 * outside
            if best is None or cost < best[0] - 1e-6:
                best = (cost, dx, dy, box)
            if best[0] < 1e-6:
                return best[1:]
    return best[1:] if best else (0.0, 0.0, room)


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _write(ax: Axes, mark: Mark, dx: float, dy: float, width: float, height: float) -> None:
    gap = math.hypot(max(0.0, abs(dx) - width / 2), max(0.0, abs(dy) - height / 2))
    line = {"arrowstyle": "-", "color": INK["dim"], "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
    ax.annotate(
        mark.name,
        (mark.x, mark.y),
        (dx, dy),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize="small",
        color=mark.colour,
        arrowprops=line if gap > NEAR else None,
        zorder=4,
    )
