"""Rank 0's side of a matrix of runs: which cells are left, their folders, and what comes of them."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amn_mpi.errors import ConfigError, UserError
from amn_mpi.finished import result_of, score_of, write, write_tables

if TYPE_CHECKING:
    from amn_mpi.comm import Communicator
    from amn_mpi.matrix import Cell, Matrix
    from amn_mpi.scores import Score


class Plan:
    """What is left of a matrix.

    Args:
        found: what is to run.
        whole: with all that earlier commands may have run.
        reference: label that others are held against, "" for the matrix's own.
    """

    def __init__(self, found: Matrix, whole: Matrix, out: Path, reference: str) -> None:
        self.matrix, self.whole = _with_own_clients(found, whole)
        self.out, self.reference = out, reference
        self.todo = [cell for cell in self.matrix.cells if not self._finished(cell)]
        self._done, self._started = 0, time.monotonic()

    def ranks(self) -> int:
        """More ranks than the smallest run can use would idle; 0 if nothing is left to run."""
        return min((cell.config.data.training + 1 for cell in self.todo), default=0)

    def lock(self) -> None:
        """One comparison at a time writes to a folder."""
        from amn_mpi.runfolder import lock

        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.out)
            self._keep()
        except OSError as error:
            raise UserError(f"out = {self.out}: cannot be written: {error.strerror}") from None
        print(f"{len(self.matrix.cells)} runs, {len(self.todo)} to do, in {self.out}", flush=True)

    def _keep(self) -> None:
        """What was asked for: a report names the runs that are missing."""
        from amn_mpi import asked

        runs, valid = ([cell.folder for cell in found.cells] for found in (self.matrix, self.whole))
        asked.add(self.out, self.reference or self.matrix.reference, runs, valid)

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
        rows = [[c.folder, "to do" if c.folder in waiting else "done"] for c in self.matrix.cells]
        table(f"{self.matrix.path}: {len(rows)} runs in {self.out}", ["run", ""], rows)

    def open(self, cell: Cell) -> Any:
        """The cell's folder; a run that was stopped goes on where its newest checkpoint was made."""
        from amn_mpi.runfolder import RunFolder

        return RunFolder(str(self.out / cell.folder), replace(cell.config, resume="auto"))

    def close(self, cell: Cell, folder: Any, found: dict[str, Any]) -> None:
        """Keep a finished cell, and say how it went."""
        place = {"scenario": cell.scenario, "label": cell.label, "seed": cell.seed, "trial": cell.trial}
        found.pop("peak_memory_mb", None)  # the process's peak, so the largest run's until now
        folder.finish({**found, "cell": place})
        folder.callbacks.end(found)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        self._done += 1
        spent = time.monotonic() - self._started
        left = spent / self._done * (len(self.todo) - self._done)
        score = found.get("diverged") or f"{found['mean_last5']:.2f} (best {found['best_accuracy']:.2f})"
        print(f"[{self._done}/{len(self.todo)}] {cell.folder}: {score}, {left / 60:.0f} min left", flush=True)

    def report(self) -> None:
        """Shows what was asked for; the files hold all that is finished, by earlier commands too."""
        scores = self._scores(self.whole)
        if self.matrix.tunes:
            self._choose(scores)
            return
        reference = self.reference or self.matrix.reference
        write_tables(scores, self._scores(self.matrix), reference, self.out)

    def picture(self) -> None:
        """The report, where one of the runs asks for it."""
        if any(cell.config.logging.report for cell in self.matrix.cells):
            from amn_mpi.report import at_end

            cells = [cell for cell in self.whole.cells if self._path(cell).exists()]
            at_end(self.out, [cell.folder for cell in cells if self._differs(cell)])

    def _scores(self, found: Matrix) -> list[Score]:
        """Of the finished cells; what was run with other keys is left out."""
        there = [cell for cell in found.cells if self._path(cell).exists()]
        return [score_of(self._path(cell)) for cell in there if not self._differs(cell)]

    def _path(self, cell: Cell) -> Path:
        return self.out / cell.folder / "result.json"

    def _differs(self, cell: Cell) -> str:
        """How a finished cell was run otherwise; "" if it was not."""
        from amn_mpi import matrix

        return matrix.difference(cell.config, result_of(self._path(cell))["config"])

    def _choose(self, scores: list[Score]) -> None:
        import yaml

        from amn_mpi import tables
        from amn_mpi.scores import best_trials

        best = best_trials(scores)
        chosen = {label: self.whole.trials[label][trial] for label, trial in best.items()}
        write(self.out / "scores.csv", tables.long_csv(scores))
        head = f"# Chosen by {self.matrix.path.name} on validation data, {len(scores)} runs.\n"
        write(self.out / "tuned.yaml", head + yaml.safe_dump({"methods": chosen}, sort_keys=False))
        for table in tables.trials(scores, {label: self.whole.trials[label] for label in best}):
            tables.show(table)
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


def _with_own_clients(*matrices: Matrix) -> list[Matrix]:
    """The matrices with the real number of clients where the data has its own; each data is asked once."""
    from amn_mpi import data

    asked = dict.fromkeys(cell.config.data for found in matrices for cell in found.cells)
    real = {one: data.resolved(one) for one in asked}
    return [
        replace(
            found,
            cells=[replace(c, config=replace(c.config, data=real[c.config.data])) for c in found.cells],
        )
        for found in matrices
    ]
