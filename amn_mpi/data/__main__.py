"""Data sets: what is there, who gets what of them, the cache, and downloads.

``python -m amn_mpi.data list [--root DIR]``: the data sets, and where their files were found.
``python -m amn_mpi.data show CONFIG [--figure FILE.png] [--key value ...]``: what each client gets.
``python -m amn_mpi.data prepare CONFIG [--key value ...]``: write the cache ahead of a job.
``python -m amn_mpi.data fetch NAME [--to DIR] [--from URL]``: download what ``list`` does not find.

CONFIG is a file, or the name of one that comes with the package, as for ``amn_mpi.main --config``.
Exit status: 0 done, 1 something the user can mend (one line says what), 2 a wrong command line.
"""

from __future__ import annotations

from collections.abc import Sequence

from amn_mpi import tool
from amn_mpi.data.commands import COMMANDS
from amn_mpi.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """The exit status; everything is printed."""
    return tool.carry_out(argv, __doc__ or "", _run)


def _run(argv: Sequence[str]) -> None:
    if not argv or argv[0] not in COMMANDS:
        name = argv[0] if argv else "data what?"
        raise ConfigError(f"{name}: no such command; valid are {', '.join(COMMANDS)}; see --help")
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    tool.start(main)
