"""From the configuration to a federation: on rank 0 only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data import cache, own_clients, tokens
from amn_mpi.data.cache_place import folder, identity, stem
from amn_mpi.data.federation import Federation, plan
from amn_mpi.data.readers import reader
from amn_mpi.data.unseen import hold_back
from amn_mpi.data.validation import hold_out
from amn_mpi.errors import UserError

if TYPE_CHECKING:
    from amn_mpi.config import Data

# Everything that decides who gets what; data.root and data.cache only say where things lie, and
# data.validation and data.unseen are applied to what is in the cache.
KEYS = (
    "name",
    "split",
    "clients",
    "train_per_client",
    "test_per_client",
    "test_fraction",
    "min_samples",
    "labels",
    "alpha",
    "classes_per_client",
    "label_groups",
    "sizes",
    "sigma",
    "concept",
    "concept_groups",
)


def describe(data: Data, seed: int, vocabulary: int = 0) -> Federation:
    """The federation without its samples: reads the data set, writes nothing. See ``prepare``."""
    source = reader(data)
    raw = own_clients.read(source, data, source.locate(data))
    found = plan(raw, data, seed)
    tokens.check(raw, found, vocabulary)
    return hold_back(hold_out(found.federation, data.validation, found.y), data, seed)


def prepare(data: Data, seed: int, vocabulary: int = 0) -> Federation:
    """The federation, its samples in a cache file that is written if it is not there or damaged.

    Args:
        vocabulary: samples have to be tokens below it; 0: any numbers.

    Raises ``UserError`` when the data set cannot be read or the cache not be written, and where a sample
    is no token.
    """
    source = reader(data)
    files = source.locate(data)
    path = folder(data) / f"{stem(data)}-{_key(data, seed, files)}.h5"
    found = cache.read(path)
    if found is not None and tokens.fit(found, vocabulary):  # else it is read for its clients' names
        own_clients.forget()
        return _validated(found, data, seed)
    raw = own_clients.read(source, data, files)
    planned = plan(raw, data, seed)
    tokens.check(raw, planned, vocabulary)
    cache.write(path, planned, raw.x)
    own_clients.remember(raw, data, files)
    found = cache.read(path)
    if found is None:
        raise UserError(
            f"{path}: was written, but does not read back; set data.cache or $AMN_CACHE to another folder"
        )
    return _validated(found, data, seed)


def _validated(fed: Federation, data: Data, seed: int) -> Federation:
    labels = np.empty(0, np.int32)
    if data.validation:
        labels = np.fromfile(fed.path, np.int32, int(fed.start[-1]), offset=fed.y_offset)
    return hold_back(hold_out(fed, data.validation, labels), data, seed)


def _key(data: Data, seed: int, files: dict[str, Path]) -> str:
    """Hash of all that the cache depends on, the source files' state included."""
    content = {
        "format": cache.FORMAT,
        "seed": seed,
        "data": {key: getattr(data, key) for key in KEYS},
        "files": [identity(path) for path in files.values()],
    }
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
