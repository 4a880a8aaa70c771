"""The compiled local steps: which instruction set serves here, and its functions.

Sets compute in float32, but for ``avx512bf16``: it rounds what the products read to bfloat16.
``AMN_NATIVE`` sets a limit: ``avx2`` or ``generic`` take no higher set, ``off`` takes none.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

from amn_mpi.native.build import FOLDER, LIBRARY, PRECISION, SETS, sources

MAKE = "python -m amn_mpi.native builds it"


class Rule(ctypes.Structure):
    """How a parameter follows its gradient; pointers are 0 where there is no such term."""

    _fields_ = [
        ("lr", ctypes.c_float),
        ("momentum", ctypes.c_float),
        ("decay", ctypes.c_float),
        ("strength", ctypes.c_float),
        ("anchor", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("velocity", ctypes.c_void_p),
    ]


class Functions:
    """The library's functions in one instruction set, by their names in C."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        def function(short: str, result: Any, *arguments: Any) -> Any:
            found = getattr(library, f"amn_{name}_{short}")
            found.restype, found.argtypes = result, arguments
            return found

        pointer, number, status = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        batch = (pointer, pointer, pointer, pointer, number)  # network, w, x, y, samples
        self.instructions = name
        self.new = function("new", pointer, pointer, number, number)
        self.free = function("free", None, pointer)
        self.scores = function("scores", status, pointer, pointer, pointer, number, pointer)
        self.judge = function("judge", status, *batch, pointer, pointer)
        self.slope = function("slope", status, *batch, ctypes.c_float, pointer, number, *(pointer,) * 3)
        self.train = function(
            "train",
            status,
            *(pointer,) * 5,
            *(number, pointer, number, number),
            ctypes.POINTER(Rule),
            pointer,
        )
        self.add_fixed = function("add_fixed", None, pointer, pointer, number, ctypes.c_double)


def available(precision: str = "fp32") -> str:
    """The instruction set that serves ("avx512bf16", "avx512", "avx2", "generic"); "" where there is none."""
    names = runnable(precision)
    return names[0] if names else ""


def reason(precision: str = "fp32") -> str:
    """Why there is none; "" where there is one."""
    limit = os.environ.get("AMN_NATIVE", "")
    if limit == "off":
        return "AMN_NATIVE is off"
    if limit and limit not in SETS:
        return f"AMN_NATIVE is {limit}: valid are off, {', '.join(SETS)}"
    if _library()[1] or precision == "fp32" or runnable(precision):
        return _library()[1]
    wanted = [name for name in SETS if PRECISION[name] == precision]
    if limit and any(name in _compiled() for name in wanted):
        return f"AMN_NATIVE is {limit}"
    return f"{precision} needs {' or '.join(wanted)}, of processor and compiler"


def runnable(precision: str = "fp32") -> tuple[str, ...]:
    """All instruction sets of a precision that are compiled, allowed and run here, best first."""
    limit = os.environ.get("AMN_NATIVE", "") or next(iter(SETS))
    if limit not in SETS:
        return ()
    allowed = list(SETS)[list(SETS).index(limit) :]
    return tuple(name for name in allowed if name in _compiled() and PRECISION[name] == precision)


def functions(name: str = "") -> Functions:
    """The functions in the instruction set ``name``, or in the best that serves float32.

    Raises:
        RuntimeError: there is none, or it does not run here.
    """
    name, (library, _) = name or available(), _library()
    known = name in SETS and name in runnable(PRECISION[name])
    if library is None or not known:
        raise RuntimeError(reason() or f"{name}: runs not here; {', '.join(runnable())} do")
    return Functions(library, name)


@cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """(library, "") or (None, why not)."""
    path = FOLDER / LIBRARY
    if not path.exists():
        return None, f"{LIBRARY} is not there: {MAKE}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{LIBRARY} cannot be loaded: {error}"
    library.amn_sources.restype = ctypes.c_char_p
    if library.amn_sources().decode() != sources():
        return None, f"{LIBRARY} is of other sources: {MAKE}"
    return library, ""


@cache
def _compiled() -> tuple[str, ...]:
    library, _ = _library()
    if library is None:
        return ()
    found = []
    for name in SETS:
        runs = name == "generic" or getattr(library, f"amn_runs_{name}")()
        if runs and hasattr(library, f"amn_{name}_new"):
            found.append(name)
    return tuple(found)
