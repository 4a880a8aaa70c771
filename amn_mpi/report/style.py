"""One look for all figures: sizes, and colours that HTML replaces by those of the theme."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each colour occurs once: in the page it becomes the CSS variable of its name.
INK = {"ink": "#1b1f24", "dim": "#5b636d", "line": "#d3d8de", "paper": "#fefefe"}
SERIES = ("#1f66c1", "#d1550b", "#12805c", "#a3369b", "#8a6a00", "#c22f4f", "#0b7f93", "#6a54c9")
ACCENT = (31, 102, 193)
VARIABLES = {**INK, **{f"s{k}": colour for k, colour in enumerate(SERIES)}}


@dataclass(frozen=True)
class Width:
    """Of a figure: ``inches`` across, the text's size in points, and marks that fit beside each other."""

    name: str
    inches: float
    font: float
    ticks: int


WIDE = Width("wide", 7.0, 8.0, 40)
NARROW = Width("narrow", 3.5, 8.5, 10)


def series(k: int) -> str:
    return SERIES[k % len(SERIES)]


@contextmanager
def look(width: Width) -> Iterator[None]:
    """Matplotlib's own defaults and ours, whatever the user has set; text is never read as formulas."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the font lacks is drawn as a box
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.size": width.font,
                "axes.labelsize": width.font,
                "xtick.labelsize": width.font - 0.5,
                "ytick.labelsize": width.font - 0.5,
                "legend.fontsize": width.font - 0.5,
                "axes.titlesize": width.font,
                "text.parse_math": False,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": INK["line"],
                "axes.labelcolor": INK["dim"],
                "axes.axisbelow": True,
                "text.color": INK["ink"],
                "xtick.color": INK["line"],
                "ytick.color": INK["line"],
                "xtick.labelcolor": INK["dim"],
                "ytick.labelcolor": INK["dim"],
                "grid.color": INK["line"],
                "grid.linewidth": 0.5,
                "legend.frameon": False,
                "lines.linewidth": 1.5,
                "svg.fonttype": "none",
                "pdf.fonttype": 42,
                "image.composite_image": False,
                "figure.constrained_layout.use": True,
            }
        )
        yield


def figure(width: Width, height: float) -> Figure:
    """Of ``width`` and ``height`` inches; needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width.inches, height))


def short(name: Any, most: int = 16) -> str:
    """A name that fits on an axis, in one line."""
    text = " ".join(str(name).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def every(names: Sequence[Any], most: int) -> tuple[list[int], list[str]]:
    """Places and labels for an axis: all names, or evenly spaced ones where there are too many."""
    step = next(s for s in _steps() if len(names) <= s * most)
    places = list(range(0, len(names), step))
    return places, [short(names[k]) for k in places]


def _steps() -> Iterator[int]:
    size = 1
    while True:
        yield from (size, 2 * size, 5 * size)
        size *= 10
