"""Figures made of cells: who listens to whom, and who has which classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi.report.read import Found
from amn_mpi.report.style import ACCENT, INK, Width, every, figure, series, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELLS = 300  # most cells along a side; more clients are averaged, no screen has more
STEPS = 48  # shades: few, so that the page stays small


def shades(values: np.ndarray, full: float) -> np.ndarray:
    """(n, m) from 0 to ``full`` as RGBA: one colour, more or less opaque, right on any background."""
    cells = np.zeros((*values.shape, 4), np.uint8)
    cells[..., :3] = ACCENT
    share = np.clip(values / full, 0, 1) if full > 0 else np.zeros_like(values)
    cells[..., 3] = np.round(np.round(share * STEPS) * (255 / STEPS))
    return cells


def fitted(matrix: np.ndarray) -> np.ndarray:
    """(N, N) with neighbours averaged until it has at most ``CELLS`` cells along a side."""
    step = -(-len(matrix) // CELLS)
    if step == 1:
        return matrix
    starts = np.arange(0, len(matrix), step)
    sizes = np.diff(np.append(starts, len(matrix)))
    summed = np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1)
    return summed / sizes[:, None] / sizes[None, :]


def full_at(found: Found) -> float:
    """The attention that has the full colour: of all rounds and layers, but for the highest 0.5 %."""
    last = [matrix[:, ~np.eye(matrix.shape[-1], dtype=bool)] for matrix in found.attention.values()]
    return max((float(np.quantile(each, 0.995)) for each in last if each.size), default=0.0) or 1.0


def cells_of(found: Found, round: int, order: np.ndarray) -> list[np.ndarray]:
    """The pictures of a round, one a layer, each (n, n, 4)."""
    full = full_at(found)
    return [shades(fitted(layer[np.ix_(order, order)]), full) for layer in found.attention[round]]


def attention(found: Found, width: Width, order: np.ndarray) -> Figure | None:
    """The last snapshot, layer by layer: row i shows to whom client i listens; groups at the margin."""
    if not found.attention:
        return None
    last = max(found.attention)
    layers = cells_of(found, last, order)
    across = min(len(layers), 2 if width.ticks > 20 else 1)
    down = -(-len(layers) // across)
    side = (width.inches - 0.3) / across
    fig = figure(width, down * (side + 0.05) + 0.5 + 0.2 * bool(found.groups))
    names = found.layer_names(len(layers))
    most = max(4, width.ticks // across) if across > 1 else 2 * width.ticks
    strips = _strip(len(found.groups)) * 72 * side if found.groups else 0.0  # points, at most
    for k, cells in enumerate(layers):
        ax = fig.add_subplot(down, across, k + 1)
        n = len(order)
        ax.imshow(cells, interpolation="none", extent=(-0.5, n - 0.5, n - 0.5, -0.5), aspect="equal")
        ax.set_title(short(names[k], 24), loc="left", pad=3 + strips)
        _marks(ax, order, most, both=True)
        _margins(ax, found, order, both=True)
        _frame(ax)
        if k >= len(layers) - across:
            ax.set_xlabel("to client")
        if k % across == 0:
            ax.set_ylabel("client listens")
    _group_legend(fig, found)
    return fig


def classes(found: Found, width: Width, order: np.ndarray) -> Figure | None:
    """Each client's mix of classes among its training samples, and how many samples it has."""
    if not found.counts.size:
        return None
    counts = found.counts[order]
    names = [short(name, 14) for name in found.result["class_names"]]
    fig = figure(width, 1.6 + min(0.2 * len(names), 0.55 * width.inches + 1.0))
    top, ax = fig.subplots(2, 1, sharex=True, height_ratios=(1, max(2.0, min(len(names) / 3, 5))))
    n = len(order)
    if n > 60:  # bars that touch show seams
        top.fill_between(range(n), counts.sum(1), step="mid", color=series(0), alpha=0.75, lw=0)
        top.set_ylim(bottom=0)
    else:
        top.bar(range(n), counts.sum(1), 0.8, color=series(0), alpha=0.75)
    top.set_ylabel("samples")
    top.tick_params(length=0, labelbottom=False)
    top.grid(visible=True, axis="y")
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(
        shades(share.T, max(float(share.max()), 1e-9)),
        interpolation="none",
        extent=(-0.5, n - 0.5, len(names) - 0.5, -0.5),
        aspect="auto",
    )
    _marks(ax, order, width.ticks, both=False)
    ax.set_yticks(*every(names, 26))
    ax.set_xlabel("client")
    _frame(ax)
    _margins(ax, found, order, both=False)
    _group_legend(fig, found)
    return fig


def _marks(ax: Axes, order: np.ndarray, most: int, both: bool) -> None:
    """Numbers of the clients in their order; beyond ``most`` evenly spaced ones."""
    places, labels = every(order.tolist(), most)
    turned = 90 if len(labels) > 12 else 0
    ax.set_xticks(places, labels, rotation=turned)
    if both:
        ax.set_yticks(places, labels)
    ax.tick_params(length=0)


def _frame(ax: Axes) -> None:
    for side in ax.spines.values():
        side.set_visible(True)


def _margins(ax: Axes, found: Found, order: np.ndarray, both: bool) -> None:
    """A strip of colours above (and beside) the cells for each kind of hidden group."""
    from matplotlib.patches import Rectangle

    for k, groups in enumerate(found.groups.values()):
        numbers = np.unique(groups, return_inverse=True)[1][order]
        at = 1 + _strip(k)
        for start, stop in _runs(numbers):
            look: dict[str, Any] = {"color": _colour(k, int(numbers[start])), "lw": 0, "clip_on": False}
            thick = 0.025 if both else 0.03
            place = (start - 0.5, at)
            ax.add_patch(Rectangle(place, stop - start, thick, transform=ax.get_xaxis_transform(), **look))
            if both:
                spot = (at, start - 0.5)
                ax.add_patch(Rectangle(spot, thick, stop - start, transform=ax.get_yaxis_transform(), **look))


def _strip(k: int) -> float:
    """Where the k-th strip begins beyond the cells, as a part of their side."""
    return 0.012 + 0.035 * k


def _colour(k: int, number: int) -> str:
    """Kinds of groups begin at different colours, so that two strips are not taken for one."""
    return series(number + 1 + 4 * k)


def _runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Where equal numbers stand side by side: (first, one past the last)."""
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return list(zip(cuts, cuts[1:]))


def _group_legend(fig: Figure, found: Found) -> None:
    from matplotlib.patches import Patch

    handles, labels = [], []
    for k, (kind, groups) in enumerate(found.groups.items()):
        names = np.unique(groups)
        if len(names) > 8:
            continue
        for number, name in enumerate(names):
            handles.append(Patch(color=_colour(k, number)))
            labels.append(f"{kind} {name}")
    if handles:
        wide = fig.get_figwidth() > 5
        fig.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=min(len(handles), 7 if wide else 3),
            labelcolor=INK["ink"],
            handlelength=1,
        )
