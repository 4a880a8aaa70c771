"""The figure of class counts: a column for each client, a row for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from amn_mpi.data.federation import Federation
from amn_mpi.errors import UserError

FEW, MOST_NAMES, LONGEST = 16, 50, 16  # clients with numbers in their cells; names on an axis; letters


def save(fed: Federation, path: Path) -> None:
    """Draw and write; nothing is shown on a screen.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--figure: needs matplotlib; pip install '.[report]' has it") from None
    figure = draw(fed, Figure)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"--figure {path}: cannot be written ({error.strerror or error})") from None


def draw(fed: Federation, kind: Any) -> Any:
    """Class counts as colours, and each client's size above them; ``kind`` is matplotlib's Figure."""
    clients, classes = fed.train_counts.shape
    width, height = min(max(2.6 + 0.32 * clients, 5.0), 13.0), min(max(2.0 + 0.28 * classes, 3.5), 11.0)
    figure = kind(figsize=(width, height), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, max(2.0, height - 2.0)])
    above.bar(np.arange(clients), fed.train, width=0.8 if clients <= 100 else 1.0, color="#4477aa")
    above.set_ylabel("training\nsamples")
    above.spines[["top", "right"]].set_visible(False)
    above.set_title(_plain(f"{fed.name}: {clients} clients"), loc="left")
    image = below.imshow(fed.train_counts.T, aspect="auto", cmap="Blues", interpolation="nearest", vmin=0)
    figure.colorbar(image, ax=below, label="training samples of a class", pad=0.01)
    below.set_xlabel("client")
    below.set_ylabel("label")
    _name_axes(fed, below)
    if clients <= FEW and classes <= MOST_NAMES:
        _write_counts(fed.train_counts, below)
    return figure


def _name_axes(fed: Federation, axes: Any) -> None:
    """Every name where there is room, else round numbers."""
    from matplotlib.ticker import MaxNLocator

    clients, classes = fed.train_counts.shape
    if classes <= MOST_NAMES:
        axes.set_yticks(range(classes), [_plain(name[:LONGEST]) for name in fed.class_names])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(20, integer=True))
    if clients <= 32:
        axes.set_xticks(range(clients))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))


def _plain(text: str) -> str:
    """A user's own name, of which matplotlib would set what stands between dollars as mathematics."""
    return text.replace("$", r"\$")


def _write_counts(counts: np.ndarray, axes: Any) -> None:
    half = counts.max() / 2
    for client, label in zip(*np.nonzero(counts)):
        number = counts[client, label]
        colour = "white" if number > half else "black"
        axes.text(client, label, str(number), ha="center", va="center", color=colour, fontsize=7)
