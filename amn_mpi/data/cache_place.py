"""Where prepared data lies, and what tells whether its source has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from amn_mpi.errors import UserError

if TYPE_CHECKING:
    from amn_mpi.config import Data


def folder(data: Data) -> Path:
    """``data.cache``, else $AMN_CACHE, else a folder in the home."""
    given = data.cache or os.environ.get("AMN_CACHE") or "~/.cache/amn_mpi"
    return Path(given).expanduser().absolute()


def stem(data: Data) -> str:
    """How the names of files of this data begin."""
    return Path(data.name).stem


def identity(path: Path) -> tuple[str, int, int]:
    """Path, size and time of change: cheaper than a hash of the content, as make does it."""
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return str(path.resolve()), state.st_size, state.st_mtime_ns
