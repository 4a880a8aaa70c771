"""A run, or a comparison of methods, as one HTML page and as figures for a paper.

``python -m amn_mpi.report RUN [--out DIR] [--local RUN2]``
``python -m amn_mpi.report COMPARISON [--out DIR]``

RUN is the folder of a run, finished or not. Writes report.html and figures/*.pdf, *.png there, or in DIR.
RUN2 is a run of the method local on the same clients: each client's accuracy is shown beside its own there.
COMPARISON is the folder of amn_mpi.compare; runs that are missing in it are named.

Exit status: 0 written, 1 nothing to report or a damaged file, 2 a wrong command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amn_mpi import tool
from amn_mpi.errors import ConfigError
from amn_mpi.report import write

OPTIONS, VALID = ("out", "local"), "RUN [--out DIR] [--local RUN2]"


def main(argv: Sequence[str]) -> int:
    """The exit status; what is wrong is told in one line."""
    return tool.carry_out(argv, __doc__ or "", _report)


def _report(argv: Sequence[str]) -> None:
    given, names = tool.options(argv, OPTIONS, VALID)
    if len(names) != 1:
        raise ConfigError(f"give one run folder, not {len(names)}; valid is {VALID}")
    out, local = (Path(given[name]) if name in given else None for name in OPTIONS)
    print(f"report in {write(Path(names[0]), out, local)}", flush=True)


if __name__ == "__main__":
    tool.start(main)
