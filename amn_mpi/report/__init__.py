"""The report of one run: report.html, one file that needs no network, and figures as PDF and PNG.

``read`` -> what a run folder holds; ``figures`` and ``heat`` -> matplotlib figures of it, of two widths;
``svg`` -> such a figure inside HTML; ``page`` -> the HTML.
"""

from __future__ import annotations

from pathlib import Path

from amn_mpi.errors import UserError


def write(folder: Path, out: Path | None = None, local: Path | None = None) -> Path:
    """Write report.html and figures/ of the run in ``folder``; returns the path of the page.

    Args:
        out: where to, by default the run folder.
        local: a run of the method local on the same clients, to compare each client with.

    Raises:
        UserError: nothing to report, a file is damaged or cannot be written, a library is missing.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"the report needs {error.name}: pip install 'amn_mpi[report]'") from None
    from amn_mpi.report import page, read

    found = read.run(folder)
    alone = None if local is None else read.local(local, found)
    target = out or folder
    try:
        return page.write(found, alone, target)
    except OSError as error:
        raise UserError(f"{error.filename or target}: cannot be written: {error.strerror}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise UserError(f"{folder}: its files hold what no run writes: {reason}") from None
