"""The attention of some rounds, kept for the report: RUN/attention/00010.npy. Rank 0 only."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from amn_mpi.config import Config
from amn_mpi.resume import warn

FOLDER = "attention"


def spaced(rounds: int, most: int) -> set[int]:
    """At most so many of the rounds 1 .. ``rounds``, evenly spaced, the last one always among them."""
    return {-(-rounds * k // most) for k in range(1, most + 1)} if most else set()


def kept(folder: Path) -> dict[int, Path]:
    """The files that are there, by round, in order."""
    found = {int(path.stem): path for path in (folder / FOLDER).glob("*.npy") if path.stem.isdecimal()}
    return dict(sorted(found.items()))


class Snapshots:
    """Writes (L, N, N) matrices as float16, a file a round; a full disk costs pictures, not the run."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self._warned = folder, False
        self.rounds = spaced(config.rounds, config.logging.attention)

    def begin(self, done: int) -> None:
        """Remove what rounds after ``done`` have left: they are about to be run again."""
        for round, path in kept(self.folder).items():
            if round > done:
                path.unlink(missing_ok=True)

    def add(self, round: int, attention: np.ndarray) -> None:
        """Keep (L, N, N), if this is one of the rounds."""
        if round not in self.rounds:
            return
        path = self.folder / FOLDER / f"{round:05d}.npy"
        temporary = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(exist_ok=True)
            with open(temporary, "wb") as file:
                np.save(file, attention.astype(np.float16))
            os.replace(temporary, path)
        except OSError as error:
            if not self._warned:
                warn(f"{path}: {error.strerror}; the run goes on, its report lacks this")
            self._warned = True
