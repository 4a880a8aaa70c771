"""What all ranks need to know about the clients' data; no samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi.data import concept
from amn_mpi.data.raw import Raw

if TYPE_CHECKING:
    from amn_mpi.config import Data
    from amn_mpi.data.heterogeneity import Assignment

FACTS = ("name", "x_dtype", "shape", "class_names", "scale", "shift", "train", "test", "client_names")


@dataclass(frozen=True, eq=False)
class Federation:
    """Who holds what, and where it lies in the cache file (sent to every rank).

    ``path``: the file ("" when nothing was written); ``x_offset``, ``y_offset``: where its rows
    begin, in bytes; ``x_dtype``: numpy's name of their type (y is int32); ``shape``: one sample.
    Client i has rows from ``start[i]``: ``train[i]`` for training, then ``test[i]``.
    ``train_counts`` (N, C) counts labels as the client sees them. A model sees
    ``x * scale + shift``. ``content``: a checksum of all that is in the file (0: there is none).
    ``newcomers``: clients that come when the training is over; None where there are none.
    ``client_names``: what the data calls client i; empty where it has no clients of its own.
    """

    name: str
    path: str
    x_offset: int
    y_offset: int
    x_dtype: str
    shape: tuple[int, ...]
    class_names: list[str]
    scale: float
    shift: float
    start: np.ndarray
    train: np.ndarray
    test: np.ndarray
    train_counts: np.ndarray
    label_group: np.ndarray
    concept_group: np.ndarray
    content: int = 0
    newcomers: Federation | None = None
    client_names: list[str] = field(default_factory=list)

    @property
    def clients(self) -> int:
        return len(self.train)

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def named(self) -> bool:
        """Whether the data's names of its clients tell more than their numbers."""
        return bool(self.client_names) and self.client_names != [str(k) for k in range(self.clients)]

    def called(self, client: int) -> str:
        """A client's number, and its name where that tells more."""
        return f"{client} {self.client_names[client]}" if self.named else str(client)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps for those who come later: numbers, and no samples; as plain values."""
        found = {name: getattr(self, name) for name in FACTS}
        return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in found.items()}

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Federation:
        """The federation of ``facts``, without its samples and without what only they need."""
        train, test = (np.asarray(facts[name], np.int64) for name in ("train", "test"))
        none = np.zeros(len(train), np.int64)
        counts = np.zeros((len(train), len(facts["class_names"])), np.int64)
        known = {"client_names": [], **facts, "shape": tuple(facts["shape"]), "train": train, "test": test}
        return cls(
            **{name: known[name] for name in FACTS},
            path="",
            x_offset=0,
            y_offset=0,
            start=np.zeros(len(train) + 1, np.int64),
            train_counts=counts,
            label_group=none,
            concept_group=none,
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """A federation that is not written yet, with what writing it takes.

    ``order`` (m,): index in the raw data of each row; ``y`` (m,) int32: its label as seen;
    ``group`` (m,): its concept group; ``turns``: number of rotated groups (1: no rotation).
    """

    federation: Federation
    order: np.ndarray
    y: np.ndarray
    group: np.ndarray
    turns: int


def plan(raw: Raw, data: Data, seed: int) -> Plan:
    """Decide who gets which samples and sees them how. Raises ``ConfigError``."""
    from amn_mpi.data import heterogeneity, natural

    shape, classes = raw.x.shape[1:], len(raw.class_names)
    if raw.client is not None:
        data = natural.applied(data)
        found = natural.assign(raw, data, seed)
    else:
        concept.check_shape(data, shape)
        found = heterogeneity.assign(raw.y, data, seed, classes)
    table = concept.relabelling(data, classes, seed)
    group = np.repeat(found.concept_group, np.diff(found.start))
    counts = np.zeros_like(found.train_counts)
    np.put_along_axis(counts, table[found.concept_group], found.train_counts, axis=1)
    federation = Federation(
        name=data.name,
        path="",
        x_offset=0,
        y_offset=0,
        x_dtype=raw.x.dtype.str,
        shape=shape,
        class_names=list(raw.class_names),
        scale=raw.scale,
        shift=raw.shift,
        start=found.start,
        train=found.train,
        test=found.test,
        train_counts=counts,
        label_group=found.label_group,
        concept_group=found.concept_group,
        client_names=_names(raw, found),
    )
    turns = data.concept_groups if data.concept == "rotate" else 1
    y = table[group, raw.y[found.order]].astype(np.int32)
    return Plan(federation, found.order, y, group, turns)


def _names(raw: Raw, found: Assignment) -> list[str]:
    if raw.client is None:
        return []
    names = [raw.client_names[raw.client[row]] for row in found.order[found.start[:-1]]]
    return [name.removesuffix(".npz").removesuffix(".h5") for name in names]  # a file's is its stem
