"""What the folder of a comparison holds, checked: its finished runs, and which are missing and why."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from amn_mpi import asked, finished, kept, matrix
from amn_mpi.config import leaves
from amn_mpi.errors import UserError
from amn_mpi.report import read as of_run
from amn_mpi.resume import warn
from amn_mpi.scores import Board, Score

NAMED = 10  # runs in one line


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        config: {dotted key: value}; empty where the run is known by scores.csv alone.
        sent: bytes by all ranks without those of checkpoints; None if unknown, as for a diverged run.
        seconds: of training, all ranks together; None if unknown.
        curve: round -> mean accuracy, percent.
    """

    score: Score
    config: dict[str, Any]
    versions: dict[str, Any]
    ranks: int
    sent: float | None = None
    seconds: float | None = None
    curve: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Comparison:
    """``runs`` and ``missing`` go by the run's folder; ``missing`` says why. ``notes``: sentences."""

    folder: Path
    board: Board
    runs: dict[str, Run]
    missing: dict[str, str]
    notes: list[str]

    def of(self, scenario: str, label: str) -> list[Run]:
        return [r for r in self.runs.values() if (r.score.scenario, r.score.label) == (scenario, label)]


def is_one(folder: Path) -> bool:
    """Whether amn_mpi.compare has written there."""
    return (folder / asked.NAME).exists() or bool(_folders(folder))


def read(folder: Path, strange: Collection[str] = ()) -> Comparison:
    """Read the folder of a comparison; what is missing is told in a warning line.

    Args:
        strange: runs that were made with keys other than the comparison's, which are left out.

    Raises:
        UserError: one line.
    """
    known = asked.read(folder)
    runs: dict[str, Run] = {}
    missing: dict[str, str] = {}
    lines = _lines(folder, known.known if known else [])
    names = _names(folder, known)
    shown = [name for name in names if known is None or known.shows(name)]
    for name in shown:
        try:
            there = lines[name] if name in lines else _run(folder, name)
        except UserError as error:
            missing[name] = "damaged: " + str(error).replace(f"{folder / name}/", "", 1)
            continue
        if isinstance(there, str) or name in strange:
            missing[name] = there if isinstance(there, str) else "run with other keys"
        else:
            runs[name] = there
    if not runs:
        told = _some([f"{name} ({why})" for name, why in missing.items()])
        raise UserError(f"{folder}: nothing to report: none of its {len(missing)} runs is finished: {told}")
    notes = _notes(folder, runs, missing)
    if known and len(shown) < len(names):
        told = ", ".join(map(str, known.seeds))
        notes.append(f"{len(names) - len(shown)} runs with other seeds than {told}, which the last command "
                     "asked for, are left out, as in its tables")  # fmt: skip
    for note in notes:
        warn(f"{folder}: {note}")
    board = Board([run.score for run in runs.values()], known.reference if known else "amn")
    return Comparison(folder, board, runs, missing, notes)


def _folders(folder: Path) -> list[str]:
    """Those of runs, as a comparison lays them out."""
    names = (path.relative_to(folder).as_posix() for path in folder.glob("*/*/seed*") if path.is_dir())
    return sorted(name for name in names if asked.RUN.fullmatch(name))


def _names(folder: Path, known: asked.Asked | None) -> list[str]:
    """The runs that ought to be there, and all finished ones that nobody asked for any more."""
    there = _folders(folder)
    if known is not None:
        more = [name for name in there if (folder / name / "result.json").exists()]
        return list(dict.fromkeys([*known.runs, *known.known, *more]))
    parts = [name.split("/") for name in there]
    scenarios, labels, seeds = (list(dict.fromkeys(part[k] for part in parts)) for k in range(3))
    seeds.sort(key=lambda name: int(name.removeprefix("seed")))
    return [f"{a}/{b}/{c}" for a in scenarios for c in seeds for b in sorted(labels)]


def _run(folder: Path, name: str) -> Run | str:
    """The run, or why there is none. Raises UserError where its result is damaged."""
    path = folder / name / "result.json"
    if not path.exists():
        rows = of_run.metrics(path.with_name("metrics.jsonl"))
        if not rows:
            return "not run"
        return f"not finished, {rows[-1]['round']} rounds are there"
    result = finished.result_of(path)
    score = finished.score_in(result, path)
    there = matrix.place(score.scenario, score.label, score.trial, score.seed)
    if there != name:
        return f"damaged: holds {there}"
    try:
        config, versions = leaves(result["config"]), dict(result.get("versions", {}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"damaged: {type(error).__name__} {error}"
    return _made(replace(score, curve=finished.curve_of(path.parent)), config, versions)


def _made(score: Score, config: dict[str, Any], versions: dict[str, Any]) -> Run:
    label = matrix.labelled(score.label, score.trial)
    found = Run(replace(score, label=label), config, versions, score.ranks, curve=score.curve)
    if math.isnan(score.figures["mean_last5"]):
        return replace(found, ranks=0, curve={})
    trained = None if math.isnan(score.trained) else score.trained
    return replace(found, sent=float(score.sent), seconds=trained)


def _lines(folder: Path, names: Collection[str]) -> dict[str, Run | str]:
    """What scores.csv knows of some runs, or why it does not."""
    try:
        rows = kept.read(folder / "scores.csv") if names else []
    except UserError as error:
        return dict.fromkeys(names, f"known, but {str(error).replace(f'{folder}/', '', 1)}")
    found = {matrix.place(row.scenario, row.label, row.trial, row.seed): row for row in rows}
    return {name: _line(found[name]) if name in found else "not in scores.csv" for name in names}


def _line(score: Score) -> Run:
    return _made(score, {}, {"amn_mpi": score.version} if score.version else {})


def _notes(folder: Path, runs: dict[str, Run], missing: dict[str, str]) -> list[str]:
    """What is to be known before the figures are read."""
    notes = []
    if missing:
        count = f"{len(missing)} of {len(runs) + len(missing)} runs are missing"
        told = [f"{name} ({why})" for name, why in missing.items()]
        notes.append(f"{count}: {_some(told)}; the report holds what is there")
    lines = [name for name, run in runs.items() if not run.config]
    if lines:
        notes.append(
            f"{len(lines)} runs are known from scores.csv alone: their configuration is not here, nor "
            f"are the rounds between the points of their curves: {_some(lines)}"
        )
    bare = [name for name, run in runs.items() if run.ranks and not run.curve]
    if bare:
        notes.append(f"no curve, as metrics.jsonl is missing or damaged: {_some(bare)}")
    try:
        finished.same_data(
            [run.score for run in runs.values() if run.config],
            [folder / name / "result.json" for name, run in runs.items() if run.config],
        )
    except UserError as error:
        notes.append(str(error))
    ranks = sorted({run.ranks for run in runs.values() if run.ranks})
    if len(ranks) > 1:
        listed = ", ".join(map(str, ranks))
        notes.append(f"runs were made on {listed} ranks: their bytes and seconds are not comparable")
    return notes


def _some(things: list[str]) -> str:
    more = f", and {len(things) - NAMED} more" if len(things) > NAMED else ""
    return ", ".join(things[:NAMED]) + more
