"""One function per figure; each draws for a given width, and gives None where the run has no such thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi.report.read import Found
from amn_mpi.report.style import INK, Width, every, figure, series, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 40  # clients beyond which none is named


def accuracy(found: Found, width: Width) -> Figure | None:
    """Mean and worst tenth of the clients' own models over rounds, inside the band of the deciles."""
    rows = found.evaluated
    if not rows:
        return None
    fig = figure(width, 0.45 * width.inches + 0.5)
    ax = fig.add_subplot()
    rounds = [row["round"] for row in rows]
    dot = "o" if len(rows) == 1 else ""
    banded = [row for row in rows if len(row.get("deciles", ())) == 9]
    if banded:
        deciles = np.array([row["deciles"] for row in banded], float)
        at = [row["round"] for row in banded]
        names = ("deciles 1 to 9", "deciles 3 to 7")
        for name, alpha, low, high in zip(names, (0.13, 0.2), (0, 2), (8, 6)):
            colour = series(0)
            ax.fill_between(
                at, deciles[:, low], deciles[:, high], color=colour, alpha=alpha, lw=0, label=name
            )
    ax.plot(rounds, [row["mean_accuracy"] for row in rows], dot, ls="-", color=series(0), label="mean")
    if all("worst10" in row for row in rows):
        worst = [row["worst10"] for row in rows]
        ax.plot(rounds, worst, dot, ls="--", color=series(1), label="worst tenth")
    _axes(ax, "round", "test accuracy, %")
    whole(ax)
    _legend(fig, ax, width, 4)
    return fig


def clients(found: Found, width: Width, local: np.ndarray | None) -> Figure | None:
    """Accuracy of each client's own model, sorted; beside it that of the client alone, if known.

    Args:
        local: (N,), percent, in a run of the method local.
    """
    if not len(found.accuracy):
        return None
    fig = figure(width, 0.42 * width.inches + 0.6)
    ax = fig.add_subplot()
    order = np.argsort(found.accuracy, kind="stable")
    places = np.arange(len(order))
    method = short(found.result.get("method", "own model"))
    many = len(order) > MANY
    shape: dict[str, Any] = {"color": series(0), "alpha": 0.75, "label": method}
    if many:  # bars that touch show seams
        ax.fill_between(places, found.accuracy[order], step="mid", lw=0, **shape)
    else:
        ax.bar(places, found.accuracy[order], 0.7, **shape)
    ax.axhline(found.accuracy.mean(), color=series(0), lw=1, label=f"{method}, mean")
    alone = _local_mean(found)
    if local is not None:
        size = 2.0 if many else 4.0
        ax.plot(places, local[order], "o", ms=size, color=series(1), label="Local, same client")
        alone = float(local.mean())
    if alone is not None:
        ax.axhline(alone, color=series(1), lw=1, ls="--", label="Local, mean")
    named = len(order) <= width.ticks
    _axes(ax, "client, by accuracy" if named else "clients, by accuracy", "test accuracy, %")
    ax.set_xlim(-0.6, len(order) - 0.4)
    ax.set_ylim(bottom=0)
    numbers = order.tolist() if named else list(range(len(order)))
    ax.set_xticks(*every(numbers, width.ticks if named else width.ticks // 2))
    _legend(fig, ax, width, 4)
    return fig


def _local_mean(found: Found) -> float | None:
    own = found.result.get("baselines", {}).get("local", {})
    return own.get("mean_accuracy")


def gate(found: Found, width: Width) -> Figure | None:
    """The share of each layer's mixing that follows attention, over rounds."""
    rows = [row for row in found.rows if isinstance(row.get("gate"), list) and row["gate"]]
    if not rows or len({len(row["gate"]) for row in rows}) > 1:
        return None
    values = np.array([row["gate"] for row in rows], float)
    names = found.layer_names(values.shape[1])
    fig = figure(width, 0.4 * width.inches + 0.6)
    ax = fig.add_subplot()
    rounds = [row["round"] for row in rows]
    for k, name in enumerate(names):
        style = ("-", "--", ":", "-.")[k // 8 % 4] if len(names) > 8 else ("-", "--", "-.", ":")[k % 4]
        ax.plot(rounds, values[:, k], ls=style, color=series(k), label=short(name))
    _axes(ax, "round", "gate")
    whole(ax)
    _legend(fig, ax, width, 6)
    return fig


def seconds(found: Found, width: Width) -> Figure | None:
    """Wall seconds by phase: rank 0, and mean and maximum over the ranks."""
    told = found.result.get("seconds", {})
    phases = [name for name, value in told.get("max", {}).items() if value > 0]
    if not phases:
        return None
    fig = figure(width, 0.36 * len(phases) + 1.0)
    ax = fig.add_subplot()
    kinds = (("rank0", "rank 0"), ("mean", "mean of the ranks"), ("max", "slowest rank"))
    for k, (kind, label) in enumerate(kinds):
        values = [told[kind].get(name, 0.0) for name in phases]
        ax.barh(np.arange(len(phases)) + (k - 1) * 0.27, values, 0.25, color=series(k), label=label)
    _bars(ax, phases, "seconds")
    _legend(fig, ax, width, 3)
    return fig


def traffic(found: Found, width: Width) -> Figure | None:
    """Bytes that all ranks together sent, by collective."""
    sent = {str(name): float(value) for name, value in found.result.get("bytes_sent", {}).items() if value}
    if not sent:
        return None
    names = sorted(sent, key=lambda name: -sent[name])
    unit, scale = _unit(sent[names[0]])
    fig = figure(width, 0.26 * len(names) + 0.7)
    ax = fig.add_subplot()
    bars = ax.barh(np.arange(len(names)), [sent[name] / scale for name in names], 0.65, color=series(0))
    ax.bar_label(bars, [amount(sent[name]) for name in names], padding=3, color=INK["ink"])
    ax.margins(x=0.22)
    _bars(ax, names, f"{unit} sent by all ranks")
    return fig


def amount(size: float) -> str:
    """Bytes as a person says them."""
    unit, scale = _unit(size)
    return f"{size / scale:.3g} {unit}"


def _unit(size: float) -> tuple[str, float]:
    power = max(0, min(4, int(np.log10(max(size, 1.0)) // 3)))
    return ("B", "kB", "MB", "GB", "TB")[power], 1000.0**power


def _bars(ax: Axes, names: list[str], label: str) -> None:
    _axes(ax, label, "")
    ax.set_yticks(range(len(names)), [short(name) for name in names])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")


def _axes(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(visible=True, axis="y")
    ax.tick_params(length=0)


def whole(ax: Axes) -> None:
    """Rounds are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.margins(x=0.01)


def _legend(fig: Figure, ax: Axes, width: Width, columns: int) -> None:
    """Above the axes, in as many columns as there is room for."""
    fit = columns if width.ticks > 20 else 2
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=min(fit, max(1, len(labels))))
