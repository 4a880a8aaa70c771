"""What the programs without ranks have in common: help, errors in one line, a reader who leaves."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from amn_mpi import streams
from amn_mpi.errors import ConfigError, UserError

Work = Callable[[Sequence[str]], "int | None"]


def carry_out(argv: Sequence[str], help: str, work: Work, wrong: int | None = None) -> int:
    """The exit status of ``work``; what is wrong is told in one line.

    Args:
        help: what ``--help`` prints.
        wrong: the status of every error; None: the error's own.
    """
    with streams.harmless_here():
        return _carry_out(argv, help, work, wrong)


def _carry_out(argv: Sequence[str], help: str, work: Work, wrong: int | None) -> int:
    if {"--help", "-h"} & set(argv):
        print(help.strip(), flush=True)
        return 0
    try:
        status = work(argv) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"amn_mpi: {error}", file=sys.stderr)
        return error.status if wrong is None else wrong
    except OSError as error:
        if wrong is None and (not error.filename or isinstance(error, FileNotFoundError)):
            raise
        print(f"amn_mpi: {error}", file=sys.stderr)
        return 1 if wrong is None else wrong


def options(argv: Sequence[str], known: Sequence[str], valid: str = "") -> tuple[dict[str, str], list[str]]:
    """The values of ``--known`` options, and all other words.

    Args:
        valid: how a command line looks; given, it is told where an option is unknown. Else such an
            option is one of the other words.

    Raises:
        ConfigError: an option has no value, or is unknown.
    """
    given: dict[str, str] = {}
    others: list[str] = []
    rest = list(argv)
    told = f"; valid is {valid}" if valid else ""
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option[2:] not in known:
            if valid and word.startswith("-"):
                raise ConfigError(f"{option}: unknown{told}")
            others.append(word)
            continue
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        if not value:
            raise ConfigError(f"{option}: a value is missing after it{told}")
        given[option[2:]] = value
    return given, others


def start(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a program with the command line's words and end with its status; Ctrl-C ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
