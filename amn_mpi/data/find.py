"""Where the files of a data set are looked for.

In this order: ``data.root``, the folder ``$AMN_DATA``, the folder of a system package; in each of
the first two first in sub-folders with the data set's usual names, then in the folder itself
(MNIST and Fashion-MNIST use the same file names, so a named sub-folder is the surer find).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from amn_mpi.errors import ConfigError, UserError

if TYPE_CHECKING:
    from amn_mpi.config import Data


class Missing(UserError):
    """A data set's files are not there; ``hint`` says how to get them."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Wanted:
    """The files of a data set.

    ``files`` and ``optional`` map a plain name to the spellings under which the file may lie.
    ``folders`` are sub-folders to try, ``system`` folders of packages, ``hint`` says how to get it.
    """

    files: dict[str, tuple[str, ...]]
    folders: tuple[str, ...]
    hint: str
    system: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def find(data: Data, wanted: Wanted) -> dict[str, Path]:
    """Paths of the wanted files, all from one folder, and of those optional files that are there.

    Raises ``Missing`` that lists the folders looked in and says how to get the data set.
    """
    given = _given(data)
    places = [folder / sub for folder in given for sub in (*wanted.folders, ".")]
    for folder in [*places, *map(Path, wanted.system)]:
        found = _complete(folder, wanted)
        if found is not None:
            return found
    raise Missing(_missing(data, wanted, given), wanted.hint)


def _given(data: Data) -> list[Path]:
    """The folders the user named; a ``data.root`` that is not there is a mistake, not a miss."""
    folders = []
    if data.root:
        root = Path(data.root).expanduser()
        if not root.is_dir():
            raise ConfigError(f"data.root = {data.root}: there is no such folder")
        folders.append(root)
    if os.environ.get("AMN_DATA"):
        folders.append(Path(os.environ["AMN_DATA"]).expanduser())
    return folders


def _complete(folder: Path, wanted: Wanted) -> dict[str, Path] | None:
    """The files in one folder, or None if one of them is missing."""
    found = {}
    for name, spellings in wanted.files.items():
        path = _first(folder, spellings)
        if path is None:
            return None
        found[name] = path
    for name in wanted.optional:
        if (folder / name).is_file():
            found[name] = folder / name
    return found


def _first(folder: Path, spellings: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in spellings if (folder / name).is_file()), None)


def _missing(data: Data, wanted: Wanted, given: list[Path]) -> str:
    looked = [*map(str, given), *wanted.system]
    return (
        f"data.name = {data.name}: did not find {', '.join(wanted.files)}; "
        f"looked in: {', '.join(looked) or 'nothing, no folder was given'} "
        f"(and there in {', '.join(wanted.folders)}); "
        f"set data.root or $AMN_DATA to their folder; {wanted.hint}"
    )
