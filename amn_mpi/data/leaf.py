"""LEAF's JSON: {"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}.

Its users are the clients. ``train/*.json`` and ``test/*.json`` hold the same users; ``all_data/*.json``
has no split. Caldas et al. 2018, https://github.com/TalwalkarLab/leaf
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from amn_mpi.data.holdings import Part, pooled
from amn_mpi.data.raw import Raw
from amn_mpi.errors import UserError

FEMNIST = 28 * 28


def read(files: dict[str, Path]) -> Raw:
    """Raises ``UserError`` that names the file and the user; says how many are in one half only."""
    split = any(name.startswith("train/") for name in files)
    parts: dict[tuple[str, bool], Part] = {}
    for name, path in files.items():
        for part in _users(path, name.startswith("test/")) if name != "config.json" else ():
            if (part.client, part.test) in parts:
                raise UserError(f"{part.where}: stands in {parts[part.client, part.test].where} already")
            parts[part.client, part.test] = part
    kept = _in_both(parts, next(iter(files.values())).parent.parent) if split else list(parts.values())
    if not kept:
        raise UserError(f"{next(iter(files.values()))}: has no users")
    return pooled(_images(kept), split)


def _in_both(parts: dict[tuple[str, bool], Part], root: Path) -> list[Part]:
    """The parts of users who train and test."""
    kept = [part for part in parts.values() if (part.client, not part.test) in parts]
    alone = len(parts) - len(kept)
    if not kept:
        raise UserError(
            f"{root}: no user is both in train/ and in test/; make the split by samples (LEAF's -t sample)"
        )
    if alone:
        told = f"{alone} users are only in train/ or only in test/ and are left out"
        print(f"amn_mpi: warning: {root}: {told}", file=sys.stderr, flush=True)
    return [part for part in kept if part.y.size or not part.test]


def _users(path: Path, test: bool) -> Iterator[Part]:
    """Each user of one file."""
    tree = _tree(path)
    users, sizes, held = tree["users"], tree.get("num_samples"), tree["user_data"]
    if sizes is not None and (not isinstance(sizes, list) or len(sizes) != len(users)):
        raise UserError(f"{path}: num_samples has not one entry for each of the {len(users)} users")
    for k, user in enumerate(users):
        where = f"{path}, user {user}"
        own = held.get(str(user))
        if not isinstance(own, dict) or not {"x", "y"} <= set(own):
            raise UserError(f"{where}: user_data has no x and y of this user")
        x, y = _array(own["x"], where, "x"), _array(own["y"], where, "y")
        if sizes is not None and (y.ndim != 1 or sizes[k] != len(y)):
            raise UserError(f"{where}: num_samples says {sizes[k]}, but y has {y.size} entries")
        yield Part(str(user), where, x, y, test)


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds {type(tree).__name__}, expected users and user_data")
    for key, kind in (("users", list), ("user_data", dict)):
        if not isinstance(tree.get(key), kind):
            raise UserError(
                f"{path}: has no {key}; expected users, num_samples and user_data, as LEAF writes"
            )
    return tree


def _array(values: object, where: str, key: str) -> np.ndarray:
    """Numbers or text; whole numbers among x count as features, for JSON knows no types."""
    try:
        found = np.asarray(values)
    except (ValueError, OverflowError):
        raise UserError(f"{where}: {key} has samples of different lengths") from None
    if found.dtype.hasobject:
        raise UserError(f"{where}: {key} holds something that is neither a number nor text")
    return found.astype(np.float32) if key == "x" and found.dtype.kind in "iuf" else found


def _images(parts: list[Part]) -> list[Part]:
    """FEMNIST's rows of 784 pixels in 0..1 as images (1, 28, 28)."""
    if any(p.x.ndim != 2 or p.x.shape[1] != FEMNIST or p.x.dtype != np.float32 for p in parts):
        return parts
    if not all(p.x.min() >= 0 and p.x.max() <= 1 for p in parts if p.x.size):
        return parts
    return [Part(p.client, p.where, p.x.reshape(-1, 1, 28, 28), p.y, p.test) for p in parts]
