"""comparison.json: which runs the commands of a comparison have asked for. Rank 0 only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from amn_mpi import finished
from amn_mpi.resume import warn

NAME = "comparison.json"
RUN = re.compile(r"[^/.][^/]*/[^/.][^/]*/seed\d+")


@dataclass(frozen=True)
class Asked:
    """``reference``: label that others are held against. ``runs``: folders, scenario/method/seed0."""

    reference: str
    runs: list[str]


def read(folder: Path) -> Asked | None:
    """None where nothing is kept, or what is kept is damaged, which is told in a warning line."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text())
        runs = [str(name) for name in tree["runs"]]
        if not all(map(RUN.fullmatch, runs)):
            raise ValueError("runs are named scenario/method/seed0")
        return Asked(str(tree["reference"]), list(dict.fromkeys(runs)))
    except (OSError, KeyError, TypeError, ValueError) as error:
        warn(f"{path}: left out: {type(error).__name__} {' '.join(str(error).split())}")
        return None


def add(folder: Path, reference: str, runs: Iterable[str], valid: Iterable[str]) -> None:
    """Keep what is asked for now, beside those of earlier commands that are still ``valid``.

    Raises:
        UserError: it cannot be written.
    """
    earlier = read(folder)
    now = dict.fromkeys(runs)
    known = now | dict.fromkeys(earlier.runs if earlier else ())
    ordered = [name for name in dict.fromkeys(valid) if name in known]
    ordered += [name for name in now if name not in ordered]
    finished.write(folder / NAME, json.dumps({"reference": reference, "runs": ordered}, indent=1) + "\n")
