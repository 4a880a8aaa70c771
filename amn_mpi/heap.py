"""Memory that a step frees stays with the process: glibc's allocator is told so."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 32 * 2**20  # bytes; glibc refuses more
TRIM = 2**30


def keep() -> None:
    """Layers' outputs are freed and asked for again in every step; nothing where it is not glibc.

    By default their pages go back to the kernel in between and come again by page faults, one by one:
    an eighth of a bf16 step of the cnn, and more. Arrays above ``LARGEST`` still go back at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, TRIM)
