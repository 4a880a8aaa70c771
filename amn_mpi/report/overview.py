"""The page of a comparison: the tables that compare writes, its figures, and what was run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from amn_mpi import tables
from amn_mpi.report import diagram, panels, settings, sheet, significance
from amn_mpi.report.comparison import Comparison
from amn_mpi.report.sheet import Part
from amn_mpi.report.significance import Ranking
from amn_mpi.scores import FIGURES
from amn_mpi.tables import Table

FIGURE = FIGURES[0]  # what the figures and the ranks go by


def write(found: Comparison, out: Path) -> Path:
    """report.html and figures/ in ``out``; returns the page's path. Raises OSError."""
    ranking = significance.of_board(found.board, FIGURE)
    split = settings.split([(run.score, run.config) for run in found.runs.values() if run.config])
    return sheet.write(
        out,
        "comparison.html",
        title=f"Comparison {found.folder.resolve().name}",
        folder=str(found.folder.resolve()),
        warnings=[f"{_sentence(note)}." for note in found.notes],
        facts=_facts(found, ranking),
        parts=sheet.drawn(_figures(found, ranking), out / "figures", always=True),
        frames=[],
        tables=[_table(table) for table in tables.tables(found.board)],
        there=_there(found) if found.missing else [],
        scenarios=split.scenarios,
        methods=[(label, found.board.method[label], told) for label, told in split.labels.items()],
        config=split.common,
        versions=_versions(found),
    )


def _figures(found: Comparison, ranking: Ranking) -> Iterator[Part]:
    """In the order of the page."""
    yield (
        "critical_difference",
        "Critical differences",
        told(ranking),
        lambda width: diagram.critical_difference(ranking, width),
    )
    yield (
        "accuracy_bytes",
        "Accuracy against bytes",
        _of_costs(found, "sent", "Bytes of a run by all ranks together, without those of checkpoints."),
        lambda width: panels.against(found, "sent", width),
    )
    yield (
        "accuracy_seconds",
        "Accuracy against seconds",
        _of_costs(found, "seconds", "Wall seconds in which clients train, summed over the ranks."),
        lambda width: panels.against(found, "seconds", width),
    )
    yield (
        "curves",
        "Accuracy over rounds",
        _of_curves(found),
        lambda width: panels.curves(found, width),
    )


def told(ranking: Ranking) -> str:
    """What the diagram shows, or why there is none."""
    left = ", ".join(f"{name} ({count} blocks)" for name, count in ranking.left_out.items())
    apart = f" Left out, as they have run in fewer than half of the blocks: {left}." if left else ""
    apart += f" {ranking.unused} blocks in which a method is missing do not count." if ranking.unused else ""
    have = f"{len(ranking.ranks)} methods and {ranking.blocks} blocks (a scenario and a seed each)"
    if not ranking.testable:
        return f"Not drawn: it takes 3 methods that have all run in 2 blocks; here are {have}.{apart}"
    degrees, p = len(ranking.ranks) - 1, ranking.p
    test = f"Friedman: chi-squared {ranking.chi2:.1f} with {degrees} degrees of freedom, p = {p:.2g}."
    if p >= significance.LEVEL:
        test += " That is no evidence of any difference: the order may be chance."
    return (
        f"Mean ranks by the mean of the last five rounds, 1 is best, over N = {ranking.blocks} blocks (a "
        f"scenario and a seed each); ties share their ranks. Methods that a bar joins do not differ "
        f"significantly: their ranks are less than CD = {ranking.critical:.2f} apart (Nemenyi, 5 %). {test} "
        f"The test takes blocks as independent, which seeds of one scenario are only in part.{apart}"
    )


def _of_costs(found: Comparison, cost: str, first: str) -> str:
    """What such a figure shows, and who is not in it."""
    scenarios = found.board.scenarios
    shown = [panels.points(found, scenario, cost) for scenario in scenarios]
    if not any(point.cost > 0 for listed in shown for point in listed):
        return "Not drawn: nothing was counted" + (" (one rank sends nothing)." if cost == "sent" else ".")
    there = {(where, p.label) for where, listed in zip(scenarios, shown) for p in listed}
    gone = [
        f"{run.score.label} in {run.score.scenario}" for run in found.runs.values()
        if (run.score.scenario, run.score.label) not in there
    ]  # fmt: skip
    more = f" Not drawn, for a run diverged: {', '.join(dict.fromkeys(gone))}." if gone else ""
    low = any(p.accuracy < panels.floor([p.accuracy for p in listed]) for listed in shown for p in listed)
    more += " A triangle stands for an accuracy far below the others, which is given beside it." * low
    return (
        f"{first} Means over the seeds. Filled and joined by a dotted line: the Pareto front; no method is "
        f"both cheaper and better than one of these.{more}"
    )


def _of_curves(found: Comparison) -> str:
    text = "Mean over the clients and the seeds. Where few methods end far below the others, an axis begins "
    text += "above them."
    if longer := panels.squeezed(found):
        names = ", ".join(f"{name} ({rounds:,} rounds)" for name, rounds in longer.items())
        text += f" Drawn to the same length: {names}."
    return text


def _table(table: Table) -> dict[str, Any]:
    """Its heading is the title's first half."""
    head, _, rest = table.title.partition(": ")
    return {"title": _sentence(head), "text": _sentence(rest), "table": table}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _facts(found: Comparison, ranking: Ranking) -> list[tuple[str, str]]:
    """The first things one wants to know."""
    runs, board = found.runs, found.board
    facts = [("runs", f"{len(runs)} of {len(runs) + len(found.missing)}")]
    facts += [("missing", str(len(found.missing)))] if found.missing else []
    facts += [("methods", str(len(board.labels))), ("scenarios", str(len(board.scenarios)))]
    facts.append(("seeds", _listed(run.score.seed for run in runs.values())))
    for name, key in (("clients", "data.clients"), ("rounds", "rounds")):
        facts.append((name, _listed(run.config[key] for run in runs.values() if key in run.config)))
    facts.append(("ranks", _listed(run.ranks for run in runs.values() if run.ranks)))
    if ranking.blocks:
        place = min(ranking.ranks.values())
        facts.append(("best mean rank", f"{' and '.join(ranking.leaders)}, {place:.2f}"))
    judged = {bool(run.config.get("data.validation")) for run in runs.values()}
    facts += [("judged on", "validation data")] if judged == {True} else []
    return [*facts, ("reference", board.reference)]


def _listed(values: Iterable[Any], most: int = 6) -> str:
    each = sorted(dict.fromkeys(values), key=lambda value: (str(type(value)), value))
    more = f", and {len(each) - most} more" if len(each) > most else ""
    return (", ".join(map(str, each[:most])) + more) or "–"


def _there(found: Comparison) -> list[list[str]]:
    """For each method, how many runs of each scenario are there; the first line has the scenarios."""
    counts: dict[str, dict[str, list[int]]] = {}
    for name in (*found.runs, *found.missing):
        scenario, label, _ = name.split("/")
        cell = counts.setdefault(label, {}).setdefault(scenario, [0, 0])
        cell[0] += name in found.runs
        cell[1] += 1
    scenarios = list(dict.fromkeys(scenario for cells in counts.values() for scenario in cells))
    rows = [
        [label, *("{} of {}".format(*cells[s]) if s in cells else "–" for s in scenarios)]
        for label, cells in counts.items()
    ]
    return [["method", *scenarios], *rows]


def _versions(found: Comparison) -> dict[str, str]:
    """Of all that took part in any run."""
    every: dict[str, dict[str, None]] = {}
    for run in found.runs.values():
        for name, value in run.versions.items():
            every.setdefault(str(name), {})[str(value)] = None
    return {name: " and ".join(values) for name, values in every.items()}
