"""What benchmarks on a comparison's kept runs have in common: which comparison, and where its runs are."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable
from pathlib import Path

from amn_mpi import kept, known, matrix
from amn_mpi.errors import UserError
from amn_mpi.scores import Score


def asked(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, matrix.Matrix, list[Score]]:
    """Arguments, the comparison, and its kept runs; ends in one line where there are none to read.

    Runs that were made with other keys than the comparison has now are left out, as it would run them again.
    """
    parser.add_argument("suite")
    parser.add_argument("--scores", default="", help="a scores.csv; by default the one the suite keeps")
    parser.add_argument("--control", default="iid", help="scenarios that are not in the average")
    args = parser.parse_args()
    try:
        suite = read(args.suite)
        if suite.tunes:
            raise UserError(f"{args.suite} is a tuning; valid is a comparison with methods, not with a grid")
        if strange := sorted(set(args.control.split(",")) - {"", *scenarios(suite)}):
            raise UserError(f"--control {strange[0]}: valid are {', '.join(scenarios(suite))}")
        if not scenarios(suite, args.control):
            raise UserError(f"--control {args.control}: leaves no scenario for the average")
        if not (args.scores or suite.known):
            raise UserError(f"{args.suite} keeps no scores.csv; name one with --scores")
        path = Path(args.scores or suite.known)
        found = known.sort(kept.read(path), suite.cells, known.digests(suite.cells))
    except UserError as error:
        parser.error(str(error))
    if found.left_out:
        print(f"{path}: {len(found.left_out)} runs with other keys are left out", file=sys.stderr)
    return args, suite, [*found.scores.values(), *found.beside.values()]


@functools.cache
def read(name: str) -> matrix.Matrix:
    """A comparison by its name; some hundred configurations take seconds."""
    return matrix.read(name, {}, ())


def seeds(text: str) -> set[int]:
    """``0,1,2``; the type of an argument, whose wrong values argparse tells."""
    return {int(seed) for seed in text.split(",")}


def scenarios(suite: matrix.Matrix, control: str = "") -> list[str]:
    """Of a comparison, less those named in ``control``."""
    found = dict.fromkeys(cell.scenario for cell in suite.cells)
    return [name for name in found if name not in control.split(",")]


def missing(scores: Iterable[Score], label: str, where: Iterable[str], draws: Iterable[int]) -> str:
    """How many runs a method has of some scenarios and seeds; "" if all, diverged ones too."""
    runs = {(s.scenario, s.seed) for s in scores if s.label == label}
    wanted = [(scenario, seed) for scenario in where for seed in draws]
    there = sum(run in runs for run in wanted)
    return f"{there} of {len(wanted)} runs" if there < len(wanted) else ""
