"""What a terminal shows of a run while it goes on: a few lines, redrawn after every round. Rank 0 only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BAR, LEAST = 24, 4  # columns of the bar at most; with fewer there is none
SLOW = 1.5  # times the mean turn, and
COSTS = 0.1  # of the round beyond the mean turn: more of both is worth a word
SHORT = 0.05  # seconds: shorter turns differ by chance
TIDY = 0.01  # share of a round below which a phase is not shown
BEFORE = ("start", "prepare")  # phases that are no part of a round
PHASES = {"wait": "waiting for clients"}  # rank 0's, where it reads badly


class View:
    """Gathers what was told, round by round.

    Attributes:
        lines: what to show, one idea each; one that is wider than the terminal goes on in a further line.
        now, best: (mean accuracy, round) of the last evaluation and of the best one, over all starts.
    """

    def __init__(self, rounds: int, columns: int) -> None:
        self.lines = ["starting"]
        self._rounds, self._columns = rounds, columns
        self.now: tuple[float, int] | None = None
        self.best: tuple[float, int] | None = None
        self._seconds: dict[str, float] = {}

    def known(self, rows: list[dict[str, Any]], phases: Mapping[str, float]) -> None:
        """Rounds of an earlier start: their best accuracy counts. ``phases``: seconds before the next one."""
        self._seconds = dict(phases)
        for row in rows:
            self.score(row)

    def add(
        self, label: str, row: dict[str, Any], phases: dict[str, float], seconds: float, left: float
    ) -> None:
        """After a round, and after ``score``.

        Args:
            row: its metrics. phases: rank 0's seconds in each since the run began.
            seconds: of this round. left: until the end.
        """
        spent = {n: value - self._seconds.get(n, 0.0) for n, value in phases.items() if n not in BEFORE}
        self._seconds = dict(phases)
        lines = [[head(label, row["round"], self._rounds, left, self._columns)]]
        if self.now and self.best:
            best = f"  best {self.best[0]:.2f} % (round {self.best[1]})"
            lines.append([f"accuracy {self.now[0]:.2f} %{since(self.now, row['round'])}", best])
        lines.append([f"{seconds:.2f} s a round{':' * any(spent.values())}", *by_phase(spent)])
        lines += slowest(row, seconds)
        self.lines = [line for pieces in lines for line in folded(pieces, self._columns)]

    def score(self, row: dict[str, Any]) -> None:
        """Take note of a round's accuracy, if it was evaluated."""
        if "mean_accuracy" not in row:
            return
        self.now = (row["mean_accuracy"], row["round"])
        if self.best is None or self.now[0] > self.best[0]:
            self.best = self.now

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text("\n".join(self.lines), no_wrap=True, overflow="ellipsis")


def folded(pieces: Sequence[str], columns: int) -> list[str]:
    """Pieces side by side, in a further line, indented, where one would not fit."""
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) <= columns:
            lines[-1] += piece
        else:
            lines.append(f"  {piece.lstrip()}")
    return lines


def since(scored: tuple[float, int], round: int) -> str:
    """In which round it was, unless it is this one."""
    return "" if scored[1] == round else f" (round {scored[1]})"


def head(label: str, done: int, rounds: int, left: float, columns: int) -> str:
    """Method, round, a bar and the time left; the bar is as wide in every round of a run."""
    others = len(f"{label}  round {rounds}/{rounds}    59 min 59 s left")
    width = min(BAR, columns - others) if columns - others >= LEAST else 0
    full = width * done // rounds
    bar = f"  {'━' * full}{'╌' * (width - full)}" if width else ""
    time = f"  {duration(left)} left" if done < rounds else ""
    return f"{label}  round {done}/{rounds}{bar}{time}"


def duration(seconds: float) -> str:
    """In two units at most: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def by_phase(seconds: dict[str, float]) -> list[str]:
    """Rank 0's phases of a round, the longest first; those too short to matter are left out."""
    least = TIDY * sum(seconds.values())
    shown = sorted(((v, name) for name, v in seconds.items() if v > least and v >= 5e-4), reverse=True)[:4]
    ends = [","] * (len(shown) - 1) + [""]
    return [f" {PHASES.get(name, name)} {value:.2g}{end}" for (value, name), end in zip(shown, ends)]


def slowest(row: dict[str, Any], seconds: float) -> list[list[str]]:
    """A line on the client whose turn took longest, and one where clients diverged; each in pieces.

    Args:
        seconds: of the round.
    """
    turns, lines = row.get("turn_seconds", {}), []
    if turns and turns["mean"] > 0:
        ratio = turns["max"] / turns["mean"]
        costs = turns["max"] - turns["mean"] > COSTS * seconds
        word = ": a straggler" if ratio > SLOW and costs and turns["max"] >= SHORT else ""
        lines.append([f"slowest client {turns['max']:.2g} s,", f" {ratio:.1f} times the mean{word}"])
    if row.get("diverged"):
        first, more = row["diverged"][:8], len(row["diverged"]) - 8
        pieces = [f" {client}," for client in first[:-1]] + [f" {first[-1]}"]
        lines.append(["diverged: client", *pieces, *[f" and {more} more"] * (more > 0)])
    return lines
