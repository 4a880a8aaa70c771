"""Rank 0's side of a matrix of runs: which cells are left, their folders, and what comes of them."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amn_mpi import __version__, asked, digest, kept, known, matrix
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.finished import result_of, score_of, write, write_tables
from amn_mpi.resume import warn

if TYPE_CHECKING:
    from amn_mpi.comm import Communicator
    from amn_mpi.matrix import Cell, Matrix
    from amn_mpi.scores import Score

LEFT_OUT = "left_out.csv"


class Plan:
    """What is left of a matrix.

    Args:
        found: what is to run.
        whole: with all that earlier commands may have run.
        reference: label that others are held against, "" for the matrix's own.
        table: scores.csv of runs whose folders need not be there; None: there is none.
    """

    def __init__(
        self, found: Matrix, whole: Matrix, out: Path, reference: str, table: Path | None = None
    ) -> None:
        self.matrix, self.whole = _with_own_clients(found, whole)
        self.out, self.reference, self.table = out, reference, table
        self._digests = known.digests(self.whole.cells)
        self.known = known.sort(kept.read(table) if table else [], self.whole.cells, self._digests)
        self._rows: dict[str, Score] = {}
        open_cells = [cell for cell in self.matrix.cells if not self._finished(cell)]
        self.todo = [cell for cell in open_cells if cell.folder not in self.known.scores]
        self._done, self._started = 0, time.monotonic()

    def ranks(self) -> int:
        """More ranks than the smallest run can use would idle; 0 if nothing is left to run."""
        return min((cell.config.data.training + 1 for cell in self.todo), default=0)

    def lock(self) -> None:
        """One comparison at a time writes to a folder, and none into that of a run."""
        from amn_mpi.runfolder import lock

        if run := [name for name in ("metrics.jsonl", "result.json") if (self.out / name).exists()]:
            raise UserError(f"out = {self.out}: holds a run ({', '.join(run)}); choose another folder")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.out)
            self._keep()
            self._set_aside()
            self._save()
        except OSError as error:
            raise UserError(f"out = {self.out}: cannot be written: {error.strerror}") from None
        count, left = len(self.matrix.cells), len(self.todo)
        print(f"{count} runs{self._told()}, {left} to do, in {self.out}", flush=True)
        self._warn()

    def _keep(self) -> None:
        """What was asked for: a report names the runs that are missing."""
        runs, valid = ([cell.folder for cell in found.cells] for found in (self.matrix, self.whole))
        lines = [cell.folder for cell in self.whole.cells if self._by_table(cell)]
        asked.add(self.out, self.reference or self.matrix.reference, runs, valid, lines)

    def _set_aside(self) -> None:
        """Lines that would be lost: of the table, and of a scores.csv that is written anew without it."""
        stay = self._lines()
        lost = known.without(self._earlier("scores.csv"), [*stay, *self.known.left_out])
        lost = [row for row in lost if not self._has_folder(row)]
        rows = [*self.known.left_out, *lost]
        if rows:
            rows += known.without(self._earlier(LEFT_OUT), [*stay, *rows])
            write(self.out / LEFT_OUT, kept.text(rows))
        if lost:
            warn(
                f"{self.out / 'scores.csv'}: {len(lost)} of its runs are neither there as folders nor known; "
                f"their lines go to {self.out / LEFT_OUT}, from where --known takes them back"
            )

    def _has_folder(self, row: Score) -> bool:
        place = matrix.place(row.scenario, row.label, row.trial, row.seed)
        return (self.out / place / "result.json").exists()

    def _earlier(self, name: str) -> list[Score]:
        """Lines that an earlier command has left; none where they cannot be read."""
        try:
            return kept.read(self.out / name) if (self.out / name).exists() else []
        except UserError:
            return []

    def _lines(self) -> list[Score]:
        return [*self._scores(self.whole), *self.known.beside.values()]

    def _save(self) -> None:
        """All that is finished, after each run: the next command may come on another machine."""
        if scores := self._lines():
            write(self.out / "scores.csv", kept.text(scores))

    def _told(self) -> str:
        """How many of the runs a table knows, and by which versions of the package."""
        if self.table is None:
            return ""
        rows = [self.known.scores[c.folder] for c in self.matrix.cells if self._by_table(c)]
        others = sorted({row.version for row in rows} - {"", __version__})
        made = f" (some made with amn_mpi {', '.join(others)})" if others else ""
        return f", {len(rows)} known from {self.table}{made}"

    def _warn(self) -> None:
        """Of rows of the table that are of no use."""
        if not (count := len(self.known.left_out)):
            return
        line = f"{self.table}: {count} of its runs were made with other keys than {self.matrix.path} has now"
        if again := [cell.folder for cell in self.todo if cell.folder in self.known.changed]:
            parts = self.known.changed[again[0]]
            line += f"; {len(again)} are run again, the first {again[0]} (differs in: {parts})"
            line += "; to keep a run, give its keys the values of then"
        warn(f"{line}; these lines go to {self.out / LEFT_OUT}, not to scores.csv")

    def check(self, comm: Communicator) -> None:
        """Before hours are spent: every method with every scenario's data, memory, idle ranks.

        Raises:
            ConfigError: a method cannot work with the model or the local training; names the run.
        """
        from amn_mpi import budget, data, forecast

        firsts = {(cell.scenario, cell.label, cell.trial): cell for cell in reversed(self.todo)}
        feds: dict[Any, Any] = {}
        told: dict[str, None] = {}
        for cell in reversed(firsts.values()):
            what = (cell.config.data, cell.config.model.tokens)
            if what not in feds:
                feds[what] = data.describe(cell.config.data, cell.config.seed, cell.config.model.tokens)
            fed = feds[what]
            try:
                budget.check(cell.config, fed)
            except ConfigError as error:
                raise ConfigError(f"{cell.folder}: {error}") from None
            told.update(
                (f"{cell.folder}: {line}", None) for line in forecast.warnings(cell.config, fed, comm)
            )
        most = max(cell.config.data.training for cell in self.todo)
        if comm.size == self.ranks() < most + 1:
            told[f"ranks beyond {comm.size} stay idle: the smallest run has {comm.size - 1} clients"] = None
        if self.matrix.untuned:
            told[f"no tuned values for {', '.join(self.matrix.untuned)}: the defaults are used"] = None
        for line in told:
            print(f"amn_mpi: warning: {line}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """What there is to run."""
        from amn_mpi.progress import table

        waiting = {cell.folder for cell in self.todo}
        state = {c.folder: "known" if self._by_table(c) else "done" for c in self.matrix.cells}
        rows = [[name, "to do" if name in waiting else done] for name, done in state.items()]
        table(f"{self.matrix.path}: {len(rows)} runs in {self.out}{self._told()}", ["run", ""], rows)
        self._warn()

    def open(self, cell: Cell) -> Any:
        """The cell's folder; a run that was stopped goes on where its newest checkpoint was made."""
        from amn_mpi.runfolder import RunFolder

        return RunFolder(str(self.out / cell.folder), replace(cell.config, resume="auto"))

    def close(self, cell: Cell, folder: Any, found: dict[str, Any]) -> None:
        """Keep a finished cell, and say how it went."""
        place = {"scenario": cell.scenario, "label": cell.label, "seed": cell.seed, "trial": cell.trial}
        place["digest"] = self._digest(cell)
        found.pop("peak_memory_mb", None)  # the process's peak, so the largest run's until now
        folder.finish({**found, "cell": place})
        folder.callbacks.end(found)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        self._save()
        self._done += 1
        spent = time.monotonic() - self._started
        left = spent / self._done * (len(self.todo) - self._done)
        done = f"[{self._done}/{len(self.todo)}]"
        print(f"{done} {cell.folder}: {outcome(found)}, {left / 60:.0f} min left", flush=True)

    def report(self) -> None:
        """Shows what was asked for; the tables in files are of all that is finished with the seeds asked for.

        Other seeds are in scores.csv alone: those of development and those that judge are no one sample.
        """
        scores = self._scores(self.whole)
        if self.matrix.tunes:
            self._choose(scores)
            return
        reference = self.reference or self.matrix.reference
        seeds = {cell.seed for cell in self.matrix.cells}
        tabled = [score for score in scores if score.seed in seeds]
        write_tables(tabled, self._scores(self.matrix), reference, self.out, self._lines())

    def picture(self) -> None:
        """The report, where one of the runs asks for it."""
        if any(cell.config.logging.report for cell in self.matrix.cells):
            from amn_mpi.report import at_end

            cells = [cell for cell in self.whole.cells if self._path(cell).exists()]
            strange = [c.folder for c in cells if self._differs(c) and not self._by_table(c)]
            at_end(self.out, strange)

    def _scores(self, found: Matrix) -> list[Score]:
        """Of the finished and the known cells; what was run with other keys is left out."""
        return [row for cell in found.cells if (row := self._score(cell)) is not None]

    def _score(self, cell: Cell) -> Score | None:
        return self._row(cell) or self.known.scores.get(cell.folder)

    def _row(self, cell: Cell) -> Score | None:
        """Of a cell whose folder holds its result; read once."""
        there = cell.folder in self._rows
        if not there and self._path(cell).exists() and not self._differs(cell):
            self._rows[cell.folder] = replace(score_of(self._path(cell)), digest=self._digest(cell))
        return self._rows.get(cell.folder)

    def _by_table(self, cell: Cell) -> bool:
        """Whether a cell is known by the table alone."""
        return cell.folder in self.known.scores and self._row(cell) is None

    def _path(self, cell: Cell) -> Path:
        return self.out / cell.folder / "result.json"

    def _differs(self, cell: Cell) -> str:
        """How a finished cell was run otherwise; "" if it was not."""
        done = result_of(self._path(cell))
        then, now = done.get("cell", {}).get("digest", ""), self._digest(cell)
        if (text := matrix.difference(cell.config, done["config"])) or then in ("", now):
            return text
        return f"a {' and '.join(digest.differing(then, now))} that has changed since"

    def _digest(self, cell: Cell) -> str:
        return self._digests[cell.scenario, cell.label, cell.trial]

    def _choose(self, scores: list[Score]) -> None:
        """The best trial of each method that has run all: else an easy scenario would decide."""
        import yaml

        from amn_mpi import tables
        from amn_mpi.scores import best_trials

        self._save()
        missing = Counter(cell.label for cell in self.whole.cells if self._score(cell) is None)
        best = best_trials(score for score in scores if score.label not in missing)
        chosen = {label: self.whole.trials[label][trial] for label, trial in best.items()}
        begun = {score.label for score in scores}
        keys = {label: keys for label, keys in self.whole.trials.items() if label in begun}
        for table in tables.trials(scores, keys, best):
            tables.show(table)
        for label in self.matrix.trials:
            if label in missing:
                warn(f"{label}: {missing[label]} of its runs are missing: nothing is chosen for it")
        if chosen:
            head = f"# Chosen by {self.matrix.path.name} on validation data, {len(scores)} runs.\n"
            write(self.out / "tuned.yaml", head + yaml.safe_dump({"methods": chosen}, sort_keys=False))
            print(f"chosen values in {self.out}/tuned.yaml", flush=True)

    def _finished(self, cell: Cell) -> bool:
        if not self._path(cell).exists():
            return False
        differs = self._differs(cell)
        if differs:
            raise UserError(
                f"{self.out / cell.folder}: was run with {differs}; delete it to run it again, or give "
                "another --out"
            )
        return True


def outcome(found: dict[str, Any]) -> str:
    """A run's figures in a few words; what diverged, the run or turns of some clients."""
    diverged = found.get("diverged") or {}
    if isinstance(diverged, str):
        return diverged
    score = f"{found['mean_last5']:.2f} (best {found['best_accuracy']:.2f})"
    return f"{score}, {sum(diverged.values())} turns diverged" if diverged else score


def _with_own_clients(*matrices: Matrix) -> list[Matrix]:
    """The matrices with the real number of clients where the data has its own; each data is asked once."""
    from amn_mpi import data

    each = dict.fromkeys(cell.config.data for found in matrices for cell in found.cells)
    real = {one: data.resolved(one) for one in each}
    return [
        replace(
            found,
            cells=[replace(c, config=replace(c.config, data=real[c.config.data])) for c in found.cells],
        )
        for found in matrices
    ]
