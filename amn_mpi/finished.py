"""Finished runs, read back: their results, whether they can be compared, and their tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amn_mpi.errors import ConfigError, UserError
from amn_mpi.matrix import labelled
from amn_mpi.resume import warn

if TYPE_CHECKING:
    from amn_mpi.scores import Score

COMPARISON = "comparison.json"  # in the folder of one
SERVED = "served_from"  # in a result of ``amn_mpi.join``, which is none of a run


def compare_folders(folders: Sequence[str], reference: str, out: str) -> None:
    """Tables of all finished runs in and below some folders."""
    paths = sorted({path for name in folders for path in Path(name).rglob("result.json")})
    paths = [path for path in paths if SERVED not in result_of(path)]
    if not paths:
        raise UserError(f"{', '.join(folders)}: no finished run (result.json) in or below it")
    for name in folders:
        if not any(path.is_relative_to(name) for path in paths):
            warn(f"{name}: left out: no finished run (result.json) in or below it")
    scores = [score_of(path) for path in paths]
    scores = [replace(s, label=labelled(s.label, s.trial)) for s in scores]
    same_data(scores, paths)
    check_reference(reference, [score.label for score in scores])
    known: dict[tuple[str, str, int], Path] = {}
    for score, path in zip(scores, paths):
        other = known.setdefault((score.scenario, score.label, score.seed), path)
        if other != path:
            raise UserError(
                f"{other.parent} and {path.parent} are both {score.label} on {score.scenario} with seed "
                f"{score.seed}{_differ(other, path)}; give one of them"
            )
    folder = Path(out) if out else None
    theirs = folder is not None and (folder / COMPARISON).exists()  # has lines of known runs, without folders
    write_tables(scores, scores, reference or "amn", folder, None if theirs else scores)


def _differ(one: Path, other: Path) -> str:
    """In which keys two runs differ that a table has in one column."""
    from amn_mpi import config, matrix

    then, now = (config.leaves(result_of(path)["config"]) for path in (one, other))
    keys = config.unlike(then, now, free=("seed", "baselines", *matrix.FREE))
    return f", though with other {', '.join(keys)}" if keys else ""


def same_data(scores: list[Score], paths: list[Path]) -> None:
    """Runs of one scenario are compared as pairs: their data and turns of clients have to be the same.

    Rounds and cohort may differ with the same product: pFedHN's authors train one client a round.
    """
    from amn_mpi import cli

    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for score, path in zip(scores, paths):
        flat = cli.layer(result_of(path)["config"], "")
        kept = {k: v for k, v in flat.items() if k.startswith("data.")}
        kept |= {"rounds x cohort": round(float(flat["rounds"]) * float(flat.get("cohort", 1)), 6)}
        kept |= {"model.name": str(flat.get("model.name")).removesuffix("_bn")}
        kept |= {"model.hidden": flat.get("model.hidden")}
        kept = {k: v for k, v in kept.items() if k not in ("data.root", "data.cache")}
        other, then = first.setdefault(score.scenario, (path, kept))
        for key in kept:
            if kept[key] != then.get(key, kept[key]):
                raise UserError(
                    f"{other.parent} and {path.parent} are both {score.scenario}, but {key} = {then[key]} "
                    f"there and {kept[key]} here; give runs on the same data"
                )


def check_reference(reference: str, labels: list[str]) -> None:
    if reference and reference not in labels:
        valid = ", ".join(dict.fromkeys(labels))
        raise ConfigError(f"--reference {reference}: has not run; valid are {valid}")


def result_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found["config"], dict):
            raise TypeError("config is no tree")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the result of a run: {type(error).__name__} {error}") from None


def score_of(path: Path) -> Score:
    """The score in a result.json, with the curve beside it."""
    return replace(score_in(result_of(path), path), curve=curve_of(path.parent))


def curve_of(folder: Path) -> dict[int, float]:
    """Round -> mean accuracy, percent, of a run; empty where metrics.jsonl is missing or damaged."""
    from amn_mpi.report.read import metrics

    try:
        rows = metrics(folder / "metrics.jsonl")
    except UserError:
        return {}
    return {int(row["round"]): float(row["mean_accuracy"]) for row in rows if "mean_accuracy" in row}


def score_in(found: dict[str, Any], path: Path) -> Score:
    """The score in the content of a result.json, which was read from ``path``.

    Raises:
        UserError: it is not that of a run.
    """
    from amn_mpi import methods
    from amn_mpi.scores import of_result

    try:
        if not methods.known(found["method"]):
            raise KeyError(found["method"])
        place = found.get("cell", {})
        score = of_result(found, place.get("scenario", ""), place.get("label", ""), place.get("trial", -1))
        return replace(score, digest=str(place.get("digest", "")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the result of a run: {type(error).__name__} {error}") from None


def write_tables(
    scores: list[Score], shown: list[Score], reference: str, out: Path | None, lines: Iterable[Score] | None
) -> None:
    """Leave tables of ``scores`` in a folder, where there is one, and show those of ``shown``.

    Args:
        lines: the runs of scores.csv; None: it stays as it is.
    """
    from amn_mpi import kept, tables
    from amn_mpi.scores import Board

    found = tables.tables(Board(scores, reference))
    if out is not None:  # first of all: the terminal may be gone
        write(out / "tables.md", "\n".join(map(tables.markdown, found)))
        write(out / "tables.tex", "\n".join(map(tables.latex, found)))
        if lines is not None:
            write(out / "scores.csv", kept.text(lines))
    for table in tables.tables(Board(shown, reference)):
        tables.show(table)
    if out is not None:
        files = "tables.md and tables.tex" if lines is None else "tables.md, tables.tex and scores.csv"
        print(f"tables in {out}/{files}", flush=True)


def write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
