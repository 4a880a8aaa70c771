"""comparison.json: which runs the commands of a comparison have asked for, or know. Rank 0 only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from amn_mpi import finished
from amn_mpi.resume import warn

NAME = finished.COMPARISON
RUN = re.compile(r"[^/.][^/]*/[^/.][^/]*/seed\d+")


@dataclass(frozen=True)
class Asked:
    """``reference``: label that others are held against. ``runs``: folders, scenario/method/seed0.

    ``known``: runs that are no folders but lines of scores.csv. ``seeds``: of the last command, to which
    tables are limited; none: all.
    """

    reference: str
    runs: list[str]
    known: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def shows(self, run: str) -> bool:
        return not self.seeds or seed_of(run) in self.seeds


def seed_of(run: str) -> int:
    return int(run.rpartition("/seed")[2])


def read(folder: Path) -> Asked | None:
    """None where nothing is kept, or what is kept is damaged, which is told in a warning line."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text())
        runs, known = ([str(name) for name in names] for names in (tree["runs"], tree.get("known", ())))
        if not all(map(RUN.fullmatch, [*runs, *known])):
            raise ValueError("runs are named scenario/method/seed0")
        seeds = [int(seed) for seed in tree.get("seeds", ())]
        return Asked(str(tree["reference"]), list(dict.fromkeys(runs)), known, seeds)
    except (OSError, KeyError, TypeError, ValueError) as error:
        warn(f"{path}: left out: {type(error).__name__} {' '.join(str(error).split())}")
        return None


def add(
    folder: Path, reference: str, runs: Iterable[str], valid: Iterable[str], known: Iterable[str]
) -> None:
    """Keep what is asked for now, beside those of earlier commands that are still ``valid``.

    Args:
        known: in place of those of earlier commands.

    Raises:
        UserError: it cannot be written.
    """
    earlier = read(folder)
    now = dict.fromkeys(runs)
    every = now | dict.fromkeys(earlier.runs if earlier else ())
    ordered = [name for name in dict.fromkeys(valid) if name in every]
    ordered += [name for name in now if name not in ordered]
    seeds = sorted(set(map(seed_of, now)))
    tree = {"reference": reference, "runs": ordered, "known": list(known), "seeds": seeds}
    finished.write(folder / NAME, json.dumps(tree, indent=1) + "\n")
