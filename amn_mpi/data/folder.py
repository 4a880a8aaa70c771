"""A folder whose files are clients': one file a client, PFLlib's folder, or LEAF's JSON.

Which of them it is, is seen from the files:

```
DIR/*.npz, *.h5           x, y, and optionally x_test, y_test: one file a client
DIR/train/0.npz ...       PFLlib: with DIR/test/0.npz ... and DIR/config.json
DIR/train/*.json          LEAF: with DIR/test/*.json; or DIR/all_data/*.json, without a split
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from amn_mpi.data import arrays, leaf, pfllib
from amn_mpi.data.holdings import Part, pooled
from amn_mpi.data.raw import Raw
from amn_mpi.errors import UserError

if TYPE_CHECKING:
    from amn_mpi.config import Data

KEYS = ("x", "y", "x_test", "y_test")


def locate(data: Data) -> dict[str, Path]:
    """All files of the folder that count, by their name within it, in natural order.

    Raises ``UserError`` where it is none of the three, or a half of it is missing.
    """
    root = Path(data.name).expanduser()
    halves = [half for half in ("train", "test") if (root / half).is_dir()]
    for suffix in (".npz", ".json"):
        parts = {half: _listed(root / half, (suffix,)) for half in halves}
        if any(parts.values()):
            return {**_complete(root, parts, suffix), **_named(root, [root / "config.json"])}
    everything = _listed(root / "all_data", (".json",)) or _listed(root, (".json",), "all_data*")
    found = everything or _listed(root, arrays.SUFFIXES)
    if not found:
        raise UserError(
            f"data.name = {data.name}: no clients' files in this folder; looked for "
            f"{', '.join('*' + suffix for suffix in arrays.SUFFIXES)} (one file a client), train/*.npz and "
            "test/*.npz (PFLlib), train/*.json and test/*.json or all_data/*.json (LEAF)"
        )
    return _named(root, found)


def read(data: Data, files: dict[str, Path]) -> Raw:
    """Raises ``UserError`` that names the file, and the client where it holds several."""
    names = [name for name in files if name != "config.json"]
    if names[0].endswith(".json"):
        return leaf.read(files)
    if names[0].startswith("train/"):
        return pfllib.read(files)
    parts = [part for name in names for part in _client(files[name])]
    split = any(part.test for part in parts)
    without = {part.client: part.where for part in parts}
    for part in parts:
        if part.test:
            without.pop(part.client)
    if split and without:
        raise UserError(
            f"{next(iter(without.values()))}: has no x_test and y_test, but other clients have; "
            "valid is all of them or none"
        )
    return pooled(parts, split)


def _client(path: Path) -> Iterator[Part]:
    found = arrays.load(path, KEYS)
    for x, y, test in (("x", "y", False), ("x_test", "y_test", True)):
        values, labels = found.get(x), found.get(y)
        if test and values is None and labels is None:
            continue
        if values is None or labels is None:
            raise UserError(
                f"{path}: has no array {x if values is None else y}; expected x and y, and optionally "
                f"x_test and y_test, found {', '.join(sorted(found)) or 'nothing'}"
            )
        yield Part(path.name, str(path), values, labels, test)


def _complete(root: Path, parts: dict[str, list[Path]], suffix: str) -> dict[str, Path]:
    for half in ("train", "test"):
        if not parts.get(half):
            raise UserError(
                f"{root}: {half}/*{suffix} is missing; expected train/*{suffix} and test/*{suffix}"
            )
    return _named(root, [path for half in ("train", "test") for path in parts[half]])


def _named(root: Path, paths: list[Path]) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in paths if path.is_file()}


def _listed(folder: Path, suffixes: tuple[str, ...], pattern: str = "*") -> list[Path]:
    """Files by their names' numbers: 2.npz comes before 10.npz."""
    found = [path for path in folder.glob(pattern) if path.suffix in suffixes and path.is_file()]
    return sorted(
        found,
        key=lambda path: [
            (w.isdigit(), int(w) if w.isdigit() else 0, w) for w in re.split(r"(\d+)", path.name)
        ],
    )
