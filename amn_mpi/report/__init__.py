"""The report of a run or of a comparison: report.html, one file that needs no network, and its figures.

Of a run: ``read`` -> what its folder holds; ``figures`` and ``heat`` -> matplotlib figures of it, of two
widths; ``page`` -> the HTML. Of a comparison: ``comparison`` -> what its folder holds; ``significance`` and
``diagram``, ``panels`` -> its figures; ``overview`` -> the HTML. ``svg``: a figure inside HTML; ``sheet``:
what both pages share.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from amn_mpi.errors import ConfigError, Interrupted, Stopped, UserError


def write(
    folder: Path, out: Path | None = None, local: Path | None = None, strange: Collection[str] = ()
) -> Path:
    """Write report.html and figures/ of the run or comparison in ``folder``; returns the path of the page.

    Args:
        out: where to, by default the same folder.
        local: a run of the method local on the same clients, to compare each client with.
        strange: runs of a comparison that were made with other keys, which are left out.

    Raises:
        UserError: nothing to report, a file is damaged or cannot be written, a library is missing.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"the report needs {error.name}: pip install '.[report]'") from None
    target = out or folder
    try:
        return _write(folder, target, local, strange)
    except OSError as error:
        raise UserError(f"{error.filename or target}: cannot be written: {error.strerror}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise UserError(f"{folder}: its files hold what no run writes: {reason}") from None


def _write(folder: Path, out: Path, local: Path | None, strange: Collection[str]) -> Path:
    from amn_mpi.report import comparison

    if comparison.is_one(folder):
        from amn_mpi.report import overview

        if local is not None:
            raise ConfigError(f"--local: is for the report of a run; {folder} holds a comparison")
        return overview.write(comparison.read(folder, strange), out)
    from amn_mpi.report import page, read

    found = read.run(folder)
    return page.write(found, None if local is None else read.local(local, found), out)


def at_end(folder: Path, strange: Collection[str] = ()) -> None:
    """After runs whose results are there already: whatever is wrong with their picture is a warning."""
    try:
        print(f"  report in {write(folder, strange=strange)}", flush=True)
    except (Interrupted, Stopped):
        raise
    except Exception as error:
        from amn_mpi.resume import warn

        warn(f"no report: {' '.join(str(error).split()) or type(error).__name__}")
