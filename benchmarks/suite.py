"""What benchmarks on a comparison's kept runs have in common: which comparison, and where its runs are."""

from __future__ import annotations

import argparse
from pathlib import Path

from amn_mpi import kept, matrix
from amn_mpi.errors import UserError
from amn_mpi.scores import Score


def asked(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, matrix.Matrix, list[Score]]:
    """Arguments, the comparison, and its kept runs; ends in one line where there are none to read."""
    parser.add_argument("suite")
    parser.add_argument("--scores", default="", help="a scores.csv; by default the one the suite keeps")
    args = parser.parse_args()
    try:
        suite = matrix.read(args.suite, {}, ())
        if not (args.scores or suite.known):
            raise UserError(f"{args.suite} keeps no scores.csv; name one with --scores")
        return args, suite, kept.read(Path(args.scores or suite.known))
    except UserError as error:
        parser.error(str(error))


def seeds(text: str) -> set[int]:
    """``0,1,2``; the type of an argument, whose wrong values argparse tells."""
    return {int(seed) for seed in text.split(",") if seed}
