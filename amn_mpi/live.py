"""What a terminal shows of a run while it goes on: a few lines, redrawn after every round. Rank 0 only."""

from __future__ import annotations

from typing import Any

BAR = 24  # columns at most
SLOW = 1.5  # times the mean turn: more is worth a word
TIDY = 0.01  # share of a round below which a phase is not shown
PHASES = {
    "wait": "waiting for clients",
    "server": "server",
    "train": "train",
}  # rank 0's, where it reads badly


class View:
    """Gathers what was told, round by round; ``lines`` is pure.

    Attributes:
        lines: what to show, one idea each.
    """

    def __init__(self, rounds: int, columns: int) -> None:
        self.lines = ["starting"]
        self._rounds, self._bar = rounds, max(0, min(BAR, columns - 34))
        self._now: tuple[float, int] | None = None
        self._best: tuple[float, int] | None = None
        self._seconds: dict[str, float] = {}

    def known(self, rows: list[dict[str, Any]]) -> None:
        """Rounds of an earlier start: their best accuracy counts."""
        for row in rows:
            self._score(row)

    def add(
        self, label: str, row: dict[str, Any], phases: dict[str, float], seconds: float, left: float
    ) -> None:
        """After a round.

        Args:
            row: its metrics. phases: rank 0's seconds in each since the run began.
            seconds: of this round. left: until the end.
        """
        self._score(row)
        spent = {name: value - self._seconds.get(name, 0.0) for name, value in phases.items()}
        self._seconds = dict(phases)
        self.lines = [head(label, row["round"], self._rounds, left, self._bar)]
        if self._now and self._best:
            now, best = self._now, self._best
            when = "" if now[1] == row["round"] else f" (round {now[1]})"
            self.lines.append(f"accuracy {now[0]:.2f} %{when}  best {best[0]:.2f} % (round {best[1]})")
        self.lines.append(f"{seconds:.2f} s a round: {by_phase(spent)}".rstrip(": "))
        self.lines += slowest(row)

    def _score(self, row: dict[str, Any]) -> None:
        if "mean_accuracy" not in row:
            return
        self._now = (row["mean_accuracy"], row["round"])
        if self._best is None or self._now[0] > self._best[0]:
            self._best = self._now

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text("\n".join(self.lines))


def head(label: str, done: int, rounds: int, left: float, width: int) -> str:
    """Method, round, a bar of ``width`` columns and the time left."""
    full = width * done // rounds
    time = f"  {duration(left)} left" if done < rounds else ""
    return f"{label}  round {done}/{rounds}  {'━' * full}{'╌' * (width - full)}{time}"


def duration(seconds: float) -> str:
    """In two units at most: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def by_phase(seconds: dict[str, float]) -> str:
    """Rank 0's phases of a round, the longest first; those too short to matter are left out."""
    least = TIDY * sum(seconds.values())
    shown = sorted(((v, name) for name, v in seconds.items() if v > least and v >= 5e-4), reverse=True)
    return ", ".join(f"{PHASES.get(name, name)} {value:.2g}" for value, name in shown[:4])


def slowest(row: dict[str, Any]) -> list[str]:
    """A line where one client's turn took far longer than the mean turn, or where clients diverged."""
    turns, lines = row.get("turn_seconds", {}), []
    if turns and turns["mean"] > 0:
        ratio = turns["max"] / turns["mean"]
        told = f"slowest client {turns['max']:.2g} s, {ratio:.1f} times the mean"
        lines.append(told + (": a straggler" if ratio > SLOW else ""))
    if row.get("diverged"):
        lines.append(f"diverged: client {', '.join(map(str, row['diverged'][:8]))}")
    return lines
