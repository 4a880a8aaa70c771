"""The page: all figures at two widths, tables, and the frames of the slider, put into the template."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi import __version__
from amn_mpi.config import leaves
from amn_mpi.report import figures, heat, order, svg
from amn_mpi.report.read import Found
from amn_mpi.report.style import NARROW, WIDE, Width, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Width], "Figure | None"]
FORMATS = {"pdf": {"CreationDate": None}, "png": {}}


def write(found: Found, local: np.ndarray | None, out: Path) -> Path:
    """report.html and figures/ in ``out``; returns the page's path. Raises OSError."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    arranged = _order(found)
    parts = []
    for name, title, text, draw in _figures(found, local, arranged):
        drawn = [svg for width in (WIDE, NARROW) if (svg := _inline(draw, width, name, title))]
        if drawn:
            _save(draw, out / "figures", name)
            parts.append({"name": name, "title": title, "text": text, "svg": drawn})
        else:
            for kind in FORMATS:  # of an earlier report
                (out / "figures" / f"{name}.{kind}").unlink(missing_ok=True)
    path = out / "report.html"
    text = _render(found, parts, _frames(found, arranged))
    temporary = path.with_name(".report.html")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _order(found: Found) -> np.ndarray:
    """Of the clients in all figures that show them side by side."""
    if found.attention:
        return order.by_clusters(found.attention[max(found.attention)])
    groups = [found.groups[name] for name in reversed(list(found.groups))]
    return np.lexsort(groups) if groups else np.arange(len(found.accuracy))


def _figures(
    found: Found, local: np.ndarray | None, arranged: np.ndarray
) -> Iterator[tuple[str, str, str, Draw]]:
    """(file name, title, what it shows, how it is drawn), in the order of the page."""
    yield (
        "accuracy",
        "Accuracy over rounds",
        "Of the clients' own models on their own test samples.",
        lambda width: figures.accuracy(found, width),
    )
    yield (
        "clients",
        "Accuracy of each client",
        "At the end, the client with the lowest accuracy first.",
        lambda width: figures.clients(found, width, local),
    )
    yield (
        "attention",
        "Who listens to whom",
        f"A row is a client, its cells those it listens to; full colour from {heat.full_at(found):.2g} on. "
        "Clients that listen to each other lie side by side (average-linkage clustering of the last round).",
        lambda width: heat.attention(found, width, arranged),
    )
    yield (
        "gate",
        "Gate by layer",
        "1: a layer is mixed by attention alone; 0: all clients get the same.",
        lambda width: figures.gate(found, width),
    )
    yield (
        "classes",
        "Classes of the clients",
        "Share of each class among a client's training samples, and how many these are.",
        lambda width: heat.classes(found, width, arranged),
    )
    yield "seconds", "Seconds by phase", "Wall time.", lambda width: figures.seconds(found, width)
    yield "traffic", "Bytes by collective", "", lambda width: figures.traffic(found, width)


def _inline(draw: Draw, width: Width, name: str, title: str) -> str:
    with look(width):
        drawn = draw(width)
        return "" if drawn is None else svg.inline(drawn, f"{name}-{width.name}", title)


def _save(draw: Draw, folder: Path, name: str) -> None:
    with look(WIDE):
        drawn = draw(WIDE)
        for kind, metadata in FORMATS.items():
            if drawn is not None:
                drawn.savefig(folder / f"{name}.{kind}", dpi=200, facecolor="white", metadata=metadata)


def _frames(found: Found, arranged: np.ndarray) -> list[dict[str, Any]]:
    """Of the slider: for each kept round the pictures of its layers as data addresses."""
    return [
        {"round": round, "layers": [_png(cells) for cells in heat.cells_of(found, round, arranged)]}
        for round in sorted(found.attention)
    ]


def _png(cells: np.ndarray) -> str:
    """(n, n, 4) of one colour as a palette of opacities, a byte a cell."""
    from PIL import Image

    levels, places = np.unique(cells[..., 3], return_inverse=True)
    image = Image.frombytes("P", cells.shape[1::-1], places.astype(np.uint8).tobytes())
    image.putpalette(list(heat.ACCENT) * len(levels))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(levels.tolist()), optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _render(found: Found, parts: list[dict[str, Any]], frames: list[dict[str, Any]]) -> str:
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return env.get_template("template.html").render(
        title=f"{_text(found.config, 'method', 'name')} on {_text(found.config, 'data', 'name')}",
        folder=str(found.folder.resolve()),
        unfinished=found.unfinished,
        facts=_facts(found),
        scores=_scores(found),
        parts=parts,
        frames=frames,
        config=leaves(found.config),
        versions=found.result.get("versions", {}),
        version=__version__,
    )


def _text(tree: dict[str, Any], section: str, name: str) -> str:
    inside = tree.get(section)
    return str(inside.get(name, "?")) if isinstance(inside, dict) else "?"


def _facts(found: Found) -> list[tuple[str, str]]:
    """The first things one wants to know."""
    last, result = found.evaluated[-1] if found.evaluated else {}, found.result
    mean = result.get("mean_accuracy", last.get("mean_accuracy"))
    worst = result.get("worst10", last.get("worst10"))
    facts = [("mean accuracy", _percent(mean)), ("worst tenth", _percent(worst))]
    facts += [("Jain's index", f"{result['jain']:.3f}")] if "jain" in result else []
    names = ("clients", "rounds", "ranks", "parameters", "seed")
    facts += [(name, f"{result[name]:,}") for name in names if name in result]
    if "round_seconds" in result:
        facts.append(("a round", f"{result['round_seconds']:.3g} s"))
    if result.get("bytes_sent"):
        facts.append(("sent by all ranks", figures.amount(sum(result["bytes_sent"].values()))))
    return facts


def _scores(found: Found) -> list[list[str]]:
    """The run's models, then the baselines: mean, last five rounds, worst tenth, spread."""
    result = found.result
    rows = [
        (f"{result.get('method')}: {name}" + (" (own)" if name == result.get("model") else ""), each)
        for name, each in result.get("models", {}).items()
    ]
    rows += list(result.get("baselines", {}).items())
    keys = ("mean_accuracy", "mean_last5", "worst10", "std")
    return [
        [str(name), *(_percent(each.get(key)) if "diverged" not in each else "diverged" for key in keys)]
        for name, each in rows
    ]


def _percent(value: Any) -> str:
    return "–" if value is None else f"{float(value):.2f} %"
