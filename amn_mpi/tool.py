"""What the programs without ranks have in common: help, errors in one line, a reader who leaves."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from amn_mpi.errors import UserError
from amn_mpi.progress import reader_may_leave

Work = Callable[[Sequence[str]], "int | None"]


def carry_out(argv: Sequence[str], help: str, work: Work, wrong: int | None = None) -> int:
    """The exit status of ``work``; what is wrong is told in one line.

    Args:
        help: what ``--help`` prints.
        wrong: the status of every error; None: the error's own.
    """
    if {"--help", "-h"} & set(argv):
        print(help.strip())
        return 0
    try:
        with reader_may_leave():
            return work(argv) or 0
    except UserError as error:
        print(f"amn_mpi: {error}", file=sys.stderr)
        return error.status if wrong is None else wrong
    except OSError as error:
        if wrong is None:
            raise
        print(f"amn_mpi: {error}", file=sys.stderr)
        return wrong


def start(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a program with the command line's words and end with its status; Ctrl-C ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
