"""``list``: the data sets that have readers, and where their files lie on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from amn_mpi.config import Data
from amn_mpi.data.commands.sources import SOURCES
from amn_mpi.data.commands.words import no_more
from amn_mpi.data.find import Missing
from amn_mpi.data.readers import READERS
from amn_mpi.progress import table
from amn_mpi.tool import options

WHAT = {
    "digits": "1,797 grey images 8 x 8, 10 digits",
    "mnist": "70,000 grey images 28 x 28, 10 digits",
    "fashion_mnist": "70,000 grey images 28 x 28, 10 kinds of clothes",
    "emnist": "131,600 grey images 28 x 28, 47 digits and letters (split balanced)",
    "cifar10": "60,000 colour images 32 x 32, 10 classes",
    "cifar100": "60,000 colour images 32 x 32, 100 classes",
}


def run(argv: Sequence[str]) -> None:
    """Print the table, and below it how to get what was not found."""
    given, others = options(argv, ("root",))
    no_more(others, "list [--root DIR]")
    rows, hints = [], []
    for name in READERS:
        where, hint = found(name, given.get("root", ""))
        rows.append([name, WHAT[name], where or "not found"])
        hints += [f"  {name}: {hint}"] if hint else []
    table("data sets", ["name", "what", "where"], rows, texts=True)
    if hints:
        print("not found here; --root DIR (for runs --data.root DIR, or $AMN_DATA) says where to look:")
        print("\n".join(hints))


def found(name: str, root: str) -> tuple[str, str]:
    """(folder, "") of a data set, or ("", how to get it)."""
    data = Data(name=name, root=root)
    try:
        files = READERS[name].locate(data)
    except Missing as miss:
        fetch = f"`python -m amn_mpi.data fetch {name}`, or " if name in SOURCES else ""
        return "", fetch + miss.hint
    return str(next(iter(files.values())).parent), ""
