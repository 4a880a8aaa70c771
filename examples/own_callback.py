"""A callback of one's own: accuracy by round as a table that a spreadsheet opens, RUN/accuracy.csv."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from amn_mpi.callbacks import Callback


class Table(Callback):
    def begin(self, config: dict[str, Any], folder: Path, facts: dict[str, Any]) -> int:
        self._file = open(folder / "accuracy.csv", "w", newline="")  # noqa: SIM115
        self._rows = csv.writer(self._file)
        self._rows.writerow(["round", *facts["models"]])
        return 0  # nothing is known here: a resumed run hands its earlier rounds over, too

    def round(self, row: dict[str, Any], attention: Any) -> None:
        if "models" in row:  # it was evaluated
            means = [round(one["mean_accuracy"], 2) for one in row["models"].values()]
            self._rows.writerow([row["round"], *means])
            self._file.flush()

    def failed(self, reason: str) -> None:
        self._rows.writerow([reason])

    def close(self) -> None:
        self._file.close()
