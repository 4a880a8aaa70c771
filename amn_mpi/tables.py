"""Tables of a comparison, as Markdown and LaTeX, and on the terminal. Pure but for ``show``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from amn_mpi.scores import FIGURES, Board, Difference, Score, Summary

CONVENTIONS = {
    "mean_last5": "mean of the last five rounds",
    "best_accuracy": "best round",
    "worst10": "worst tenth of the clients, last round",
}


@dataclass(frozen=True)
class Cell:
    """Text, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str]


def tables(board: Board) -> list[Table]:
    """One table for each convention, then the paired differences to the reference."""
    found = [accuracies(board, figure) for figure in FIGURES]
    if len(board.labels) > 1:
        found.append(differences(board))
    return found


def accuracies(board: Board, figure: str) -> Table:
    """Methods x scenarios: mean +- standard deviation over seeds, average, mean rank."""
    ranks, several = board.ranks(figure), len(board.scenarios) > 1
    columns = ["method", *board.scenarios, *(["average"] if several else []), "rank"]
    rows, order = [], [*board.ranked(), *(label for label in board.labels if board.aside(label))]
    for label in order:
        texts = [
            number(board.summary(board.values(figure, name, label)), board.seeds(name))
            for name in board.scenarios
        ]
        if several:
            texts.append(number(board.summary(board.averaged(figure, label)), _most(board)))
        rank = f"{ranks[label]:.1f}" if label in ranks and not math.isnan(ranks[label]) else "-"
        rows.append([label + _mark(board, label), *texts, rank])
    return Table(
        f"test accuracy in percent, {CONVENTIONS[figure]}: mean over clients, then mean ± std over seeds",
        columns,
        _bold(board, figure, order, rows, several),
        [*_notes(board), *_of_ranks(board, figure)],
    )


def differences(board: Board) -> Table:
    """Method minus reference, paired by seed, with the 95 % interval (Student's t over seeds)."""
    figure, reference, several = "mean_last5", board.reference, len(board.scenarios) > 1
    columns = ["method", *board.scenarios, *(["average"] if several else [])]
    rows = []
    for label in board.labels:
        if label == reference:
            continue
        cells = []
        for scenario in board.scenarios:
            own, other = (board.values(figure, scenario, who) for who in (label, reference))
            cells.append(Cell(signed(board.difference(own, other), board.seeds(scenario))))
        if several:
            own, other = board.averaged(figure, label), board.averaged(figure, reference)
            cells.append(Cell(signed(board.difference(own, other), _most(board))))
        rows.append([Cell(label + _mark(board, label)), *cells])
    title = f"difference to {reference} in points, {CONVENTIONS[figure]}, with its 95 % interval"
    return Table(title, columns, rows, _notes(board))


def trials(scores: Iterable[Score], keys: dict[str, list[dict]], best: dict[str, int]) -> list[Table]:
    """A tuning: every trial's mean over scenarios and seeds, each method's chosen one marked."""
    found, rows = list(scores), []
    runs = Counter((s.label, s.trial) for s in found)
    for label, options in keys.items():
        for trial, values in enumerate(options):
            own = [s.figures["mean_last5"] for s in found if (s.label, s.trial) == (label, trial)]
            flat = ", ".join(f"{k}: {v}" for k, v in _flat(values))
            known = [value for value in own if not math.isnan(value)]  # a diverged run counts as 0
            text = f"{sum(known) / len(own):.2f}" if known else "diverged" if own else "-"
            if 0 < len(own) < max(runs.values()):
                text += f" ({len(own)} of {max(runs.values())} runs)"
            rows.append([Cell(label), Cell(flat), Cell(text, best.get(label) == trial)])
    title = "validation accuracy in percent, mean of the last five rounds, over scenarios and seeds"
    return [Table(title, ["method", "trial", "accuracy"], rows, [])]


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def number(summary: Summary, most: int = 0) -> str:
    """``most``: seeds that there could be; fewer are told, and so are those that diverged."""
    text = f"{summary.mean:.1f}" + ("" if math.isnan(summary.std) else f" ± {summary.std:.1f}")
    return _told(text, summary, most)


def signed(difference: Difference, most: int = 0) -> str:
    """As ``number``."""
    text = f"{difference.mean:+.1f}" + ("" if math.isnan(difference.half) else f" ± {difference.half:.1f}")
    return _told(text, difference, most)


def _told(text: str, of: Summary | Difference, most: int) -> str:
    if math.isnan(of.mean):
        return "diverged" if of.diverged else "-"
    notes = [f"{of.diverged} of {of.seeds} diverged"] * bool(of.diverged)
    notes += [f"{of.seeds} of {most} seeds"] * (of.seeds < most)
    return f"{text} ({', '.join(notes)})" if notes else text


def markdown(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in table.rows]
    head = [line(table.columns), "|" + "---|" * len(table.columns)]
    notes = [""] + [f"{note}  " for note in table.notes] if table.notes else []
    return "\n".join([f"### {table.title}", "", *head, *map(line, rows), *notes]) + "\n"


def latex(table: Table) -> str:
    """A booktabs tabular; the caption is a comment above it."""
    rows = [
        [f"\\textbf{{{_escape(cell.text)}}}" if cell.best else _escape(cell.text) for cell in row]
        for row in table.rows
    ]
    lines = [f"% {table.title}", f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", "\\toprule"]
    lines += [" & ".join(map(_escape, table.columns)) + " \\\\", "\\midrule"]
    lines += [" & ".join(row) + " \\\\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *(f"% {n}" for n in table.notes)]) + "\n"


def show(table: Table) -> None:
    """On the terminal; the best are marked by a star."""
    from amn_mpi import progress

    rows = [[cell.text + " *" * cell.best for cell in row] for row in table.rows]
    progress.table(table.title, table.columns, rows)
    for note in table.notes:
        print(f"  {note}", flush=True)


def _bold(
    board: Board, figure: str, labels: list[str], rows: list[list[str]], several: bool
) -> list[list[Cell]]:
    """Marks the highest mean of each column among the methods that are not listed apart."""
    best: set[tuple[str, int]] = set()
    columns = [(k, scenario) for k, scenario in enumerate(board.scenarios, 1)]
    for k, scenario in columns:
        of_each = {n: board.summary(board.values(figure, scenario, n)) for n in board.ranked()}
        best |= {(label, k) for label in _highest(of_each, board.seeds(scenario))}
    if several:
        of_each = {n: board.summary(board.averaged(figure, n)) for n in board.ranked()}
        best |= {(label, len(columns) + 1) for label in _highest(of_each, _most(board))}
    return [
        [Cell(text, (label, k) in best) for k, text in enumerate(row)] for label, row in zip(labels, rows)
    ]


def _highest(of_each: dict[str, Summary], most: int) -> list[str]:
    """Among those that have all seeds, none of them diverged."""
    known = {label: s.mean for label, s in of_each.items() if s.seeds == most and not s.diverged}
    if len(known) < 2:
        return []
    return [label for label, value in known.items() if value == max(known.values())]


def _most(board: Board) -> int:
    """Seeds that an average over the scenarios could have."""
    return min(map(board.seeds, board.scenarios))


def _of_ranks(board: Board, figure: str) -> list[str]:
    """Over which scenarios ranks are, where it is not all of them."""
    even, every = board.even(figure), board.scenarios
    if len(even) == len(every):
        return []
    some = ", ".join(even) or "none"
    return [f"rank: over {len(even)} of {len(every)} scenarios, where all methods have all seeds: {some}"]


def _mark(board: Board, label: str) -> str:
    return " †" if board.aside(label) else ""


def _notes(board: Board) -> list[str]:
    return [f"† {label}: {board.aside(label)}" for label in board.labels if board.aside(label)]


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "†": r"$\dagger$", "~": r"\textasciitilde{}"}
    special.update({sign: f"\\{sign}" for sign in "&%#_{}$"})
    special["^"] = r"\textasciicircum{}"
    guard = "{}" if text.startswith(("[", "*")) else ""  # after a line's end they are its argument
    return guard + "".join(special.get(sign, sign) for sign in text)
