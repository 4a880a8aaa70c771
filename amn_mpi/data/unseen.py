"""Clients that are held back from the training and come when it is over."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data.federation import Federation
from amn_mpi.errors import ConfigError
from amn_mpi.rng import generator

if TYPE_CHECKING:
    from amn_mpi.config import Data


def hold_back(fed: Federation, data: Data, seed: int) -> Federation:
    """The clients that train, with the others, drawn at random, as their ``newcomers``.

    Both are numbered from 0, in the order in which they were.

    Raises:
        ConfigError: nobody is left to train.
    """
    if not data.unseen:
        return fed
    count = data.newcomers
    if count >= fed.clients:
        raise ConfigError(
            f"data.unseen = {data.unseen}: leaves none of {fed.clients} clients to train; valid is less"
        )
    order = generator(seed, "data unseen").permutation(fed.clients)
    late, early = np.sort(order[:count]), np.sort(order[count:])
    return dataclasses.replace(_some(fed, early), newcomers=_some(fed, late))


def _some(fed: Federation, chosen: np.ndarray) -> Federation:
    """Some of the clients; their rows stay where they are in the cache."""
    return dataclasses.replace(
        fed,
        start=np.append(fed.start[:-1][chosen], fed.start[-1]),
        **{name: getattr(fed, name)[chosen] for name in ("train", "test", "train_counts")},
        **{name: getattr(fed, name)[chosen] for name in ("label_group", "concept_group")},
        client_names=[fed.client_names[k] for k in chosen] if fed.client_names else [],
    )
