"""What the system is told about memory: large pages for what is large, and what is freed stays."""

from __future__ import annotations

import ctypes
import mmap

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 32 * 2**20  # bytes; glibc refuses more
TRIM = 2**30


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As ``torch.empty``, in pages of 2 MB where the system has them on request.

    Work on a block of columns of many models goes through a page of each: with pages of 4 KB the
    server's step takes an eighth longer (32 clients of the cnn). Samples are read in a new order in
    every epoch: with pages of 4 KB a local epoch on colour images (LeNet-5) takes a fifth longer.
    """
    made = torch.empty(shape, dtype=dtype)
    first, page = made.data_ptr(), mmap.PAGESIZE
    start, stop = -(-first // page) * page, (first + made.nbytes) // page * page
    madvise, advice = getattr(ctypes.CDLL(None), "madvise", None), getattr(mmap, "MADV_HUGEPAGE", None)
    if madvise is not None and advice is not None and stop > start:
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), advice)  # may say no: nothing lost
    return made


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return empty(*shape, dtype=dtype).zero_()


def keep() -> None:
    """Layers' outputs are freed and asked for again in every step; nothing where it is not glibc.

    By default their pages go back to the kernel in between and come again by page faults, one by one:
    an eighth of a bf16 step of the cnn, and more. Arrays above ``LARGEST`` still go back at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, TRIM)
