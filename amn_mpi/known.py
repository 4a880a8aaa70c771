"""What a comparison knows from a kept table: which of its cells need not be run. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from amn_mpi import digest
from amn_mpi.errors import UserError
from amn_mpi.matrix import Cell, place
from amn_mpi.scores import Score, why_apart

Keys = tuple[str, str, int]  # scenario, label, trial: what has a configuration but for the seed


@dataclass
class Known:
    """The rows of a kept table.

    Attributes:
        scores: those that are cells of the comparison as it is now, by the cell's folder.
        beside: those of its scenarios and methods with the same keys, but of other seeds, in the same way.
        changed: folder of a cell that was made with other keys -> in which parts they differ.
        left_out: rows of no use now: those that were ``changed``, and those that are no cell any more.
    """

    scores: dict[str, Score] = field(default_factory=dict)
    beside: dict[str, Score] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    left_out: list[Score] = field(default_factory=list)


def digests(cells: Iterable[Cell]) -> dict[Keys, str]:
    """Of every configuration, which all seeds share."""
    some = {(cell.scenario, cell.label, cell.trial): cell.config for cell in cells}
    return {keys: digest.of(config) for keys, config in some.items()}


def sort(rows: Iterable[Score], cells: Collection[Cell], now: Mapping[Keys, str]) -> Known:
    """Which rows hold for which cells. A trial is known by its keys: its number may have changed.

    Args:
        now: digests of the cells.

    Raises:
        UserError: two rows hold for one cell and have different figures.
    """
    known = Known()
    folders = {cell.folder for cell in cells}
    options = {(cell.scenario, cell.label, cell.trial): cell.config.method for cell in cells}
    trials: dict[tuple[str, str, str], list[int]] = {}
    for (scenario, label, trial), text in now.items():
        trials.setdefault((scenario, label, text), []).append(trial)
    for row in rows:
        same = trials.get((row.scenario, row.label, row.digest))
        if same is None:
            _leave_out(known, row, now)
            continue
        trial = row.trial if row.trial in same else same[0]
        folder = place(row.scenario, row.label, trial, row.seed)
        row = _as_run(row, trial, options[row.scenario, row.label, trial])
        there = (known.scores if folder in folders else known.beside).setdefault(folder, row)
        if repr(there.figures) != repr(row.figures):  # where NaN is NaN
            told = " and ".join(str(one.figures["mean_last5"]) for one in (there, row))
            raise UserError(f"{folder}: the table of known runs has it twice, {told}; take one line out")
    return known


def _as_run(row: Score, trial: int, method: Any) -> Score:
    """As a run of the cell tells it: a file of one's own may have moved, a reason been put otherwise."""
    return replace(row, trial=trial, method=method.name, apart=why_apart(method.name, asdict(method)))


def _leave_out(known: Known, row: Score, now: Mapping[Keys, str]) -> None:
    known.left_out.append(row)
    if text := now.get((row.scenario, row.label, row.trial)):
        folder = place(row.scenario, row.label, row.trial, row.seed)
        known.changed[folder] = ", ".join(digest.differing(row.digest, text))


def without(rows: Iterable[Score], others: Iterable[Score]) -> list[Score]:
    """Rows of runs of which the others have none with the same keys and seed."""
    there = {_run(row) for row in others}
    return [row for row in rows if _run(row) not in there]


def _run(row: Score) -> tuple[str, str, int, str]:
    return row.scenario, row.label, row.seed, row.digest
