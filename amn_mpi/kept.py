"""scores.csv: a line a finished run with all that tables need, written and read back.

Short enough to keep hundreds of runs whose folders are gone; ``known.py`` says which of them still hold.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn, TypeVar

from amn_mpi import digest
from amn_mpi.errors import UserError
from amn_mpi.scores import FIGURES, Score

NAMES = ("scenario", "label", "method", "trial", "seed")
COSTS = ("round_seconds", "bytes_sent", "train_seconds", "ranks")
COLUMNS = (*NAMES, *FIGURES, *COSTS, "apart", "version", "digest")
AT = re.compile(r"at([1-9]\d{0,8})")  # the accuracy after so many rounds
POINTS = 12  # of a curve, evenly spaced; round 1 is one more
T = TypeVar("T", int, float)


def text(scores: Iterable[Score]) -> str:
    """Figures are exact, curves thinned to some dozen rounds with one decimal."""
    found = list(scores)
    curves = [thinned(score.curve) for score in found]
    rounds = sorted({at for curve in curves for at in curve})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"at{at}" for at in rounds)])
    for s, curve in zip(found, curves):
        trial = "" if s.trial < 0 else s.trial
        names = (s.scenario, s.label, s.method, trial, s.seed)
        figures = (s.figures[name] for name in FIGURES)
        costs = (f"{s.seconds:.4f}", s.sent, f"{s.trained:.3f}", s.ranks)
        points = (f"{curve[at]:.1f}" if at in curve else "" for at in rounds)
        writer.writerow([*names, *figures, *costs, s.apart, s.version, s.digest, *points])
    return out.getvalue()


def thinned(curve: dict[int, float]) -> dict[int, float]:
    """The first evaluated round from each of 1, k, 2 k, ... on, and the last; thinning twice is as once."""
    if not curve:
        return {}
    last = max(curve)
    step = math.ceil(last / POINTS)
    wanted = {1, last, *range(step, last, step)}
    return {at: curve[at] for at in sorted({min(r for r in curve if r >= want) for want in wanted})}


def read(path: Path) -> list[Score]:
    """The runs in a scores.csv; one with other keys, by its digest, is another run.

    Raises:
        UserError: it cannot be read or is damaged, in one line that names its line and column.
    """
    header, lines = _table(path)
    found: dict[tuple[str, str, int, int, str], int] = {}
    scores = []
    for number, fields in lines:
        row = _Row(path, number, header, fields)
        score = row.score()
        other = found.setdefault((score.scenario, score.label, score.trial, score.seed, score.digest), number)
        if other != number:
            row.refuse(f"the same run as in line {other}; delete one of them")
        scores.append(score)
    return scores


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the other lines, numbered, all of one length."""
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not content.endswith("\n"):
        raise UserError(f"{path}: {'its last line is cut short' if content else 'is empty'}")
    reader = csv.reader(io.StringIO(content), strict=True)
    try:
        header, *lines = [(reader.line_num, fields) for fields in reader]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None
    _check_header(header[1], path)
    for number, fields in lines:
        if len(fields) != len(header[1]):
            raise UserError(f"{path}: line {number}: has {len(fields)} of {len(header[1])} columns")
    return header[1], lines


def _check_header(header: list[str], path: Path) -> None:
    if "digest" not in header and set(header) <= {*COLUMNS} and {*NAMES} <= set(header):
        raise UserError(
            f"{path}: was written before scores.csv had a digest of each run's configuration, so none of its "
            "runs can be known; leave it out, or run the comparison once more and keep its new scores.csv"
        )
    for name in header:
        if name not in COLUMNS and not AT.fullmatch(name):
            raise UserError(
                f"{path}: line 1: {name}: unknown column; valid are {', '.join(COLUMNS)}, at1, ..."
            )
    missing = [name for name in COLUMNS if name not in header]
    twice = [name for k, name in enumerate(header) if name in header[:k]]
    if missing or twice:
        what = f"column {missing[0]} is missing" if missing else f"column {twice[0]} is there twice"
        raise UserError(f"{path}: line 1: {what}")


class _Row:
    """A line by its columns."""

    def __init__(self, path: Path, number: int, header: list[str], fields: list[str]) -> None:
        self._where, self._fields = f"{path}: line {number}", dict(zip(header, fields))

    def score(self) -> Score:
        fields = self._fields
        figures = {name: self._percent(name) for name in FIGURES}
        if len({math.isnan(value) for value in figures.values()}) > 1:
            self.refuse("some figures are nan; valid is all of them, of a run that diverged, or none")
        if not digest.FORM.fullmatch(fields["digest"]):
            self._wrong(
                "digest", "what compare writes of a comparison, such as 0a1b2-3c4d5-6e7f8-90a1b-2c3d4"
            )
        return Score(
            fields["scenario"],
            fields["label"],
            self._number("seed", int),
            fields["method"],
            figures,
            self._number("round_seconds", float),
            self._number("bytes_sent", int),
            self._number("trial", int) if fields["trial"] else -1,
            self._number("train_seconds", float),
            self._number("ranks", int),
            fields["version"],
            fields["digest"],
            {int(name[2:]): self._percent(name) for name in fields if AT.fullmatch(name) and fields[name]},
            fields["apart"],
        )

    def _percent(self, name: str) -> float:
        return self._number(name, float, 100.0)

    def _number(self, name: str, kind: Callable[[str], T], most: float = sys.float_info.max) -> T:
        """From 0 to ``most``, or nan."""
        try:
            value = kind(self._fields[name])
        except ValueError:
            value = kind("-1")
        if value < 0 or value > most:
            limits = "from 0 to 100" if most == 100 else ">= 0"
            valid = f"a whole number {limits}" if kind is int else f"a number {limits}, or nan"
            self._wrong(name, valid)
        return value

    def _wrong(self, name: str, valid: str) -> NoReturn:
        self.refuse(f"{name} = {' '.join(self._fields[name].split())}: valid is {valid}")

    def refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self._where}: {why}")
