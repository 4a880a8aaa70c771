"""What a person sees while a run goes on, and the table at its end. Rank 0 only.

A live view where a terminal reads it, plain lines at a sensible rate elsewhere. rich is imported
only when something is to be drawn.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from amn_mpi.live import View, duration, since

PLAIN_EVERY, SPARSE, SELDOM = 10.0, 0.01, 600.0


class Progress:
    """A few lines on a terminal, redrawn after every round, or now and then a line in a log."""

    def __init__(self, kind: str, rounds: int) -> None:
        self._rounds, self._begun, self._pace = rounds, 0, Pace()
        width = terminal_width() if kind in ("auto", "rich") else 0
        self._live, self._view = None, View(rounds, width or 80)
        self._off = kind == "off"
        if kind == "rich" or (kind == "auto" and width):
            self._live = _live(width or 80, self._view)

    def begin(self, done: int, rows: list[dict[str, Any]], phases: Mapping[str, float]) -> None:
        """The run goes on after round ``done``, 0 for one that starts afresh.

        Args:
            rows: those before. phases: rank 0's seconds in each so far.
        """
        self._begun = done
        self._view.known(rows, phases)
        if done and not self._off:
            print(f"goes on after round {done} of {self._rounds}", flush=True)

    def show(self, label: str, row: dict[str, Any], seconds: float, phases: dict[str, float]) -> None:
        """After a round.

        Args:
            row: its metrics. seconds: its wall time. phases: rank 0's seconds in each so far.
        """
        done = row["round"]
        left = (self._rounds - done) * self._pace.after(time.monotonic(), seconds)
        self._view.score(row)
        if self._live is not None:
            self._view.add(label, row, phases, seconds, left)
            self._live.update(self._view)
        elif not self._off and (self._pace.due() or done in (self._begun + 1, self._rounds)):
            self._pace.told()
            now = self._view.now
            score = f"  accuracy {now[0]:5.2f} %{since(now, done)}" if now else ""
            text = f"{label}  round {done}/{self._rounds}{score}  {seconds:.2f} s a round"
            print(text + (f"  {duration(left)} left" if done < self._rounds else ""), flush=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def starting(kind: str, ranks: int) -> None:
    """Say on a terminal what takes the first seconds: half a minute where many ranks share few cores."""
    if kind in ("auto", "rich") and "torch" not in sys.modules and terminal_width():
        who = f"{ranks} ranks import torch" if ranks > 1 else "torch is imported"
        print(f"{who}; then round 1 starts", flush=True)


class Pace:
    """How long a round takes, and when a log is due another line.

    That is every ten seconds, later every hundredth of the time, then every ten minutes: some 150 lines
    in half an hour, 600 in a day.
    """

    def __init__(self) -> None:
        self._first = self._now = self._told = 0.0
        self._rounds = 0

    def after(self, now: float, seconds: float) -> float:
        """Mean seconds a round, the first apart as soon as there is another: much is done for the first time.

        Args:
            now: when the round ended. seconds: what it took.
        """
        self._first = self._first if self._rounds else now
        self._rounds, self._now = self._rounds + 1, now
        return seconds if self._rounds == 1 else (now - self._first) / (self._rounds - 1)

    def due(self) -> bool:
        wait = min(SELDOM, max(PLAIN_EVERY, SPARSE * (self._now - self._first)))
        return self._now - self._told >= wait

    def told(self) -> None:
        self._told = self._now


def terminal_width() -> int:
    """Columns of the terminal that shows this process's output, 0 if none does.

    Under a launcher standard output is a pipe; the terminal is found at one of the ancestors,
    which pass the bytes on.
    """
    process = os.getpid()
    for _ in range(6):
        try:
            with open(f"/proc/{process}/fd/1") as target:
                return os.get_terminal_size(target.fileno()).columns
        except (OSError, ValueError):
            pass
        try:
            target_name = os.readlink(f"/proc/{process}/fd/1")
            if not target_name.startswith(("pipe:", "socket:")):
                return 0  # a file: whoever started the launcher wanted a log
            with open(f"/proc/{process}/stat") as stat:
                process = int(stat.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        if process <= 1:
            return 0
    return 0


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], texts: bool = False) -> None:
    """Print a table; plain characters where no terminal reads it.

    On a narrow terminal only the widest column is cut. Columns after the first stand on the right, as numbers
    do, unless all are ``texts``.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = terminal_width()
    cells = [list(map(str, row)) for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for number, column in enumerate(columns):
        keep = None if number == widths.index(max(widths)) else widths[number]
        grid.add_column(
            column, justify="right" if number and not texts else "left", no_wrap=True, min_width=keep
        )
    for row in cells[1:]:
        grid.add_row(*row)
    whole = sum(widths) + 2 * len(widths) + 2  # a log has any width
    terminal = bool(width)
    console = Console(width=width or max(160, whole), force_terminal=terminal, markup=False, emoji=False)
    console.print(title, soft_wrap=True, style="italic" if terminal else None, highlight=False)
    console.print(grid)
    sys.stdout.flush()


def _live(width: int, view: View) -> Any:
    from rich.console import Console
    from rich.live import Live

    console = Console(width=width, force_terminal=True)
    # A rank that dies takes rank 0 with it at once: nobody would show a hidden cursor again.
    setattr(console, "show_cursor", lambda show=True: False)  # noqa: B010
    live = Live(view, console=console, refresh_per_second=2, transient=True)
    live.start()
    return live
