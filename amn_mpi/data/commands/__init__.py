"""The commands of ``python -m amn_mpi.data``, each imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def _list(argv: Sequence[str]) -> None:
    from amn_mpi.data.commands import listing

    listing.run(argv)


def _show(argv: Sequence[str]) -> None:
    from amn_mpi.data.commands import show

    show.run(argv)


def _prepare(argv: Sequence[str]) -> None:
    from amn_mpi.data.commands import prepare

    prepare.run(argv)


def _fetch(argv: Sequence[str]) -> None:
    from amn_mpi.data.commands import fetch

    fetch.run(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": _list,
    "show": _show,
    "prepare": _prepare,
    "fetch": _fetch,
}
