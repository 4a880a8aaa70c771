"""What the pages have in common: figures at two widths and as files, the template, the file's writing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amn_mpi import __version__
from amn_mpi.report import svg
from amn_mpi.report.style import NARROW, WIDE, Width, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Width], "Figure | None"]
Part = tuple[str, str, str, Draw]  # file name, title, what it shows, how it is drawn
FORMATS = {"pdf": {"CreationDate": None}, "png": {}}


def drawn(figures: Iterable[Part], out: Path, always: bool = False) -> list[dict[str, Any]]:
    """Sections of the page; each figure goes into ``out`` for a paper as well. Raises OSError.

    Args:
        always: what cannot be drawn keeps its title and text.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, title, text, draw in figures:
        there = [found for width in (WIDE, NARROW) if (found := _draw(draw, width, name, title, out))]
        if there or always:
            parts.append({"name": name, "title": title, "text": text, "svg": there})
        if not there:
            for kind in FORMATS:  # of an earlier report
                (out / f"{name}.{kind}").unlink(missing_ok=True)
    return parts


def write(out: Path, template: str, **values: Any) -> Path:
    """report.html in ``out``, made whole or not at all; returns its path. Raises OSError."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = env.get_template(template).render(version=__version__, **values)
    path, temporary = out / "report.html", out / ".report.html"
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _draw(draw: Draw, width: Width, name: str, title: str, out: Path) -> str:
    """The figure as SVG, "" if there is none; the wide one is what a paper gets."""
    with look(width):
        figure = draw(width)
        if figure is None:
            return ""
        text = svg.inline(figure, f"{name}-{width.name}", title)
        for kind, metadata in FORMATS.items() if width is WIDE else ():
            figure.savefig(out / f"{name}.{kind}", dpi=200, facecolor="white", metadata=metadata)
        return text
