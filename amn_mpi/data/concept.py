"""Hidden groups of clients that see the same data differently: turned images, renamed labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data.mixes import hidden_groups
from amn_mpi.errors import ConfigError
from amn_mpi.rng import generator

if TYPE_CHECKING:
    from amn_mpi.config import Data


def check(data: Data, classes: int) -> None:
    """Raises ``ConfigError`` when ``data.concept_groups`` does not suit the concept."""
    groups = data.concept_groups
    if data.concept == "none":
        return
    if data.concept == "rotate" and groups not in (2, 4):
        raise ConfigError(
            f"data.concept_groups = {groups}: data.concept = rotate makes quarter turns, so 2 or 4"
        )
    if data.concept == "permute" and groups > classes:
        raise ConfigError(
            f"data.concept_groups = {groups}: data.concept = permute gives at most "
            f"as many groups as there are classes, {classes} in {data.name}"
        )
    if groups > data.clients:
        raise ConfigError(f"data.concept_groups = {groups} is more than data.clients = {data.clients}")


def check_shape(data: Data, shape: tuple[int, ...]) -> None:
    """Raises ``ConfigError`` when samples of this shape cannot be turned; (c, s, s) can."""
    if data.concept == "rotate" and (len(shape) != 3 or shape[1] != shape[2]):
        raise ConfigError(
            f"data.concept = rotate needs square images (channels, side, side), but "
            f"{data.name} has samples of shape {shape}; use permute or none"
        )


def assign_groups(data: Data, seed: int) -> np.ndarray:
    """(N,) concept group of each client, drawn apart from the label groups; 0 without concept."""
    if data.concept == "none":
        return np.zeros(data.clients, np.int64)
    rng = generator(seed, "data concept groups")
    return hidden_groups(data.clients, data.concept_groups, rng)


def relabelling(data: Data, classes: int, seed: int) -> np.ndarray:
    """(G, C) table: group g sees label y as ``table[g, y]``; any two groups differ in every class.

    Cyclic shifts seen through a random order P of the classes: P(P^-1(y) + g mod C). Group 0
    keeps the labels. The identity for all groups unless ``data.concept`` is permute.
    """
    groups = data.concept_groups if data.concept != "none" else 1
    if data.concept != "permute":
        return np.tile(np.arange(classes), (groups, 1))
    order = generator(seed, "data relabelling").permutation(classes)
    place = np.argsort(order)
    return order[(place[None] + np.arange(groups)[:, None]) % classes]


def rotate(x: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Turn images (n, c, s, s) of group g by g * 360 / count degrees, counter-clockwise."""
    turned = np.empty_like(x)
    for group in range(count):
        mine = groups == group
        turned[mine] = np.rot90(x[mine], group * 4 // count, axes=(2, 3))
    return turned
