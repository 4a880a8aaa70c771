"""The page: all figures at two widths, tables, and the frames of the slider, put into the template."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from amn_mpi.config import leaves
from amn_mpi.report import figures, heat, order, sheet
from amn_mpi.report.read import Found
from amn_mpi.report.sheet import Part


def write(found: Found, local: np.ndarray | None, out: Path) -> Path:
    """report.html and figures/ in ``out``; returns the page's path. Raises OSError."""
    arranged = _order(found)
    parts = sheet.drawn(_figures(found, local, arranged), out / "figures")
    return sheet.write(
        out,
        "run.html",
        title=f"{_text(found.config, 'method', 'name')} on {_text(found.config, 'data', 'name')}",
        folder=str(found.folder.resolve()),
        warnings=[found.unfinished] if found.unfinished else [],
        facts=_facts(found),
        scores=_scores(found),
        parts=parts,
        frames=_frames(found, arranged),
        config=leaves(found.config),
        versions=found.result.get("versions", {}),
    )


def _order(found: Found) -> np.ndarray:
    """Of the clients in all figures that show them side by side."""
    if found.attention:
        return order.by_clusters(found.attention[max(found.attention)])
    groups = [found.groups[name] for name in reversed(list(found.groups))]
    return np.lexsort(groups) if groups else np.arange(len(found.accuracy))


def _figures(found: Found, local: np.ndarray | None, arranged: np.ndarray) -> Iterator[Part]:
    """In the order of the page."""
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
