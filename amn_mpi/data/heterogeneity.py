"""Who gets which samples: sizes, label mixes and hidden groups, from one seed.

No sample belongs to two clients, and a client's training and test parts have the same labels in
the same proportions. Pure numpy, and every random draw has its own purpose, so that changing one
key (say ``data.sizes``) leaves the draws of the others as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data import concept
from amn_mpi.data.fit import fit, round_within
from amn_mpi.data.mixes import deal_classes, hidden_groups, log_dirichlet
from amn_mpi.data.sizes import client_sizes
from amn_mpi.data.split import split_tests
from amn_mpi.errors import ConfigError
from amn_mpi.rng import generator

if TYPE_CHECKING:
    from amn_mpi.config import Data


@dataclass(frozen=True, eq=False)
class Assignment:
    """``order``: indices of samples, client by client, training rows first, then test rows.

    ``start`` (N+1,): where each client begins in it; ``train``, ``test`` (N,): how many rows;
    ``train_counts`` (N, C): labels of the training part, before labels are permuted;
    ``label_group``, ``concept_group`` (N,): hidden groups, zeros when there are none.
    """

    order: np.ndarray
    start: np.ndarray
    train: np.ndarray
    test: np.ndarray
    label_group: np.ndarray
    concept_group: np.ndarray
    train_counts: np.ndarray


def assign(labels: np.ndarray, data: Data, seed: int, classes: int = 0) -> Assignment:
    """Deal ``labels`` (n,) in 0..C-1 to ``data.clients`` clients; C is ``classes`` or max + 1.

    Raises ``ConfigError`` naming the key when more is asked than the pool holds.
    """
    if "own" in (data.labels, data.sizes):
        key = "labels" if data.labels == "own" else "sizes"
        raise ConfigError(f"data.{key} = own: {data.name} has no clients of its own")
    classes = classes or int(labels.max()) + 1
    available = np.bincount(labels, minlength=classes)
    concept.check(data, classes)
    train, test = client_sizes(len(labels), data, seed)
    label_group = np.zeros(data.clients, np.int64)
    if data.labels == "iid":
        counts = _iid(labels, classes, train + test, seed)
    elif data.labels == "classes":
        counts, train, test = _classes(available, data, train, test, seed)
    else:
        counts, label_group = _dirichlet(available, data, train + test, seed)
    tests = split_tests(counts, test, generator(seed, "data tests"))
    return Assignment(
        _order(labels, counts - tests, tests, seed),
        np.concatenate([[0], np.cumsum(train + test)]),
        train,
        test,
        label_group,
        concept.assign_groups(data, seed),
        counts - tests,
    )


def _iid(labels: np.ndarray, classes: int, sizes: np.ndarray, seed: int) -> np.ndarray:
    """(N, C) counts of a shuffled pool cut into pieces: the pool's mix, up to chance."""
    shuffled = generator(seed, "data labels").permutation(labels)[: sizes.sum()]
    client = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.bincount(client * classes + shuffled, minlength=len(sizes) * classes)
    return counts.reshape(len(sizes), classes)


def _dirichlet(
    available: np.ndarray, data: Data, sizes: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) counts and (N,) label groups; one mix for each client, or one for each group."""
    rng = generator(seed, "data labels")
    if data.labels == "groups":
        if data.label_groups > data.clients:
            raise ConfigError(
                f"data.label_groups = {data.label_groups} is more than data.clients = {data.clients}"
            )
        group = hidden_groups(data.clients, data.label_groups, rng)
        log_mix = log_dirichlet(available, data.alpha, data.label_groups, rng)[group]
    else:
        group = np.zeros(data.clients, np.int64)
        log_mix = log_dirichlet(available, data.alpha, data.clients, rng)
    demand = fit(log_mix, sizes, available)
    return round_within(demand, sizes, available, rng), group


def _classes(
    available: np.ndarray, data: Data, train: np.ndarray, test: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, C) counts with equal shares of a few classes, and the (N,) sizes that could be kept."""
    each, present = data.classes_per_client, int((available > 0).sum())
    if each > present:
        raise ConfigError(
            f"data.classes_per_client = {each}, but {data.name} has samples of {present} classes"
        )
    rng = generator(seed, "data labels")
    chosen = deal_classes(data.clients, each, available, rng)
    sizes = train + test
    wanted = (chosen * (sizes / each)[:, None]).sum(axis=0)
    if data.train_per_client:
        _check_classes(wanted, available, data)
    else:
        train, test = _lower(chosen, wanted, available, data, train, test)
        sizes = train + test
    if train.min() < each:
        raise ConfigError(
            f"data.classes_per_client = {each} is more than the {train.min()} "
            "training samples of a client; lower it, data.clients or data.sigma"
        )
    counts = round_within(chosen * (sizes / each)[:, None], sizes, available, rng)
    return counts, train, test


def _check_classes(wanted: np.ndarray, available: np.ndarray, data: Data) -> None:
    worst = int(np.argmax(wanted - available))
    if wanted[worst] > available[worst] + 1e-6:
        raise ConfigError(
            f"data.train_per_client = {data.train_per_client}: clients with class {worst} ask for "
            f"{wanted[worst]:.0f} samples of it in all, but {data.name} has {available[worst]}; "
            "lower data.train_per_client or data.clients, or raise data.classes_per_client"
        )


def _lower(
    chosen: np.ndarray,
    wanted: np.ndarray,
    available: np.ndarray,
    data: Data,
    train: np.ndarray,
    test: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Training and test sizes at which no class is exhausted and shares stay equal.

    Each client shrinks by the factor of its scarcest class.
    """
    factor = np.minimum(1.0, available / np.maximum(wanted, 1.0))
    sizes = train + test
    new = np.floor(sizes * np.where(chosen, factor, 1.0).min(axis=1) + 1e-9).astype(np.int64)
    if not data.test_per_client:
        test = np.clip(np.rint(new * test / sizes).astype(np.int64), 1, None)
        test = np.maximum(1, np.minimum(test, new - data.min_samples))
    least = int((new - test).min())
    if least < data.min_samples:
        raise ConfigError(
            f"data.clients = {data.clients} with data.classes_per_client = "
            f"{data.classes_per_client} leaves a client {max(least, 0)} training samples, less "
            f"than data.min_samples = {data.min_samples}; lower data.clients or data.min_samples"
        )
    return new - test, test


def _order(labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Choose the samples: each class shuffled and cut into the pieces the clients get."""
    clients, classes = train.shape
    rng = generator(seed, "data samples")
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ends = np.cumsum(np.bincount(labels, minlength=classes))
    first = ends - np.bincount(labels, minlength=classes)
    # Part 2i is client i's training part, 2i + 1 its test part.
    parts = np.stack([train, test], axis=1).reshape(2 * clients, classes)
    taken = np.concatenate([by_class[a : a + n] for a, n in zip(first, parts.sum(axis=0))])
    owner = np.repeat(np.tile(np.arange(2 * clients), classes), parts.T.ravel())
    # Random within a part, or a client's rows would come class by class.
    return taken[np.lexsort((rng.random(len(owner)), owner))]
