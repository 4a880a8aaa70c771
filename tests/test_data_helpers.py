"""Shared by the tests of the data package: small files in the real formats. Holds no test."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from amn_mpi.config import Data
from amn_mpi.data import prepare
from amn_mpi.data.raw import Raw
from amn_mpi.data.readers import reader
from amn_mpi.errors import UserError

RNG = np.random.default_rng(5)


def read(name: str, root: Path | str = "", **keys: object) -> Raw:
    data = Data(name=str(name), root=str(root), **keys)
    source = reader(data)
    return source.read(data, source.locate(data))


def refused(tmp_path: Path, name: object, root: Path | str = "", **keys: object) -> str:
    """The one line with which ``prepare`` refuses; nothing may have been cached."""
    cache = tmp_path / "cache"
    with pytest.raises(UserError) as caught:
        prepare(Data(name=str(name), root=str(root), cache=str(cache), clients=2, **keys), 0)
    assert "\n" not in str(caught.value)
    assert not cache.exists()
    return str(caught.value)


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_mnist(
    folder: Path,
    pack: bool = False,
    dot: bool = False,
    prefix: str = "",
    test: str = "t10k",
    first: int = 0,
    side: tuple[int, int] = (4, 4),
    classes: int = 10,
) -> dict[str, np.ndarray]:
    """Four IDX files with 30 and 10 random images; returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {}
    for part, n in (("train", 30), (test, 10)):
        held[part, "x"] = RNG.integers(0, 256, (n, *side), dtype=np.uint8)
        held[part, "y"] = (np.arange(n) % classes + first).astype(np.uint8)
        for kind, code in (("x", "images-idx3"), ("y", "labels-idx1")):
            content = idx(held[part, kind])
            name = f"{prefix}{part}-{code}-ubyte"
            name = name.replace("-idx", ".idx") if dot else name
            path = folder / (name + (".gz" if pack else ""))
            path.write_bytes(gzip.compress(content) if pack else content)
    return held


def forget_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folders of the user's: they must not stand in for what a test leaves out."""
    monkeypatch.delenv("AMN_DATA", raising=False)
    monkeypatch.delenv("AMN_CACHE", raising=False)


def write_marked(tmp_path: Path) -> Path:
    """600 images of 4 x 4 whose first two pixels hold their own number, and 6 classes."""
    x = np.random.default_rng(0).integers(0, 256, (600, 4, 4), dtype=np.uint8)
    x[:, 0, 0], x[:, 0, 1] = np.arange(600) // 256, np.arange(600) % 256
    np.savez(tmp_path / "marked.npz", x=x, y=np.arange(600) % 6)
    return tmp_path / "marked.npz"


def settings(path: Path, **keys: object) -> Data:
    return Data(
        **{"name": str(path), "cache": str(path.parent / "cache"), "clients": 6, "concept": "none", **keys}
    )


def listing(folder: str) -> list[str]:
    return sorted(os.listdir(folder))
