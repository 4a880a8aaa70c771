"""A matplotlib figure as inline SVG whose colours are CSS variables and whose names clash with no other."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from amn_mpi.report.style import VARIABLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAG = re.compile(r"<[^<>]*>")
NAMES = re.compile(r'(\bid="|url\(#|href="#)')
COLOUR = re.compile("|".join(VARIABLES.values()))


def inline(figure: Figure, name: str, title: str) -> str:
    """SVG for the inside of a page; ``name`` is a plain word of its own, ``title`` is read aloud."""
    import html

    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = name
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = TAG.sub(lambda tag: _own(tag[0], name), text)
    head = f'<svg class="{name.rpartition("-")[2]}" role="img" aria-label="{html.escape(title)}"'
    return text.replace("<svg", head, 1)


def _own(tag: str, name: str) -> str:
    names = {colour: f"var(--{variable})" for variable, colour in VARIABLES.items()}
    if "base64," in tag:
        return (
            NAMES.sub(lambda m: f"{m[0]}{name}-", tag[: tag.index("base64,")]) + tag[tag.index("base64,") :]
        )
    tag = COLOUR.sub(lambda m: names[m[0]], tag)
    return NAMES.sub(lambda m: f"{m[0]}{name}-", tag)
