"""What single clients hold, as the readers of folders find it, becomes one pool with owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amn_mpi.data.arrays import check_labels, samples
from amn_mpi.data.raw import Raw
from amn_mpi.errors import UserError


@dataclass(frozen=True, eq=False)
class Part:
    """A client's samples for training or for its test: x (n, ...) and y (n,) as they were found.

    ``where``: the file, and the client if the file holds several, for messages.
    """

    client: str
    where: str
    x: np.ndarray
    y: np.ndarray
    test: bool = False


def pooled(parts: Sequence[Part], split: bool, classes: int = 0) -> Raw:
    """One pool out of all clients' parts; clients in the order in which they come first.

    Args:
        split: whether the parts for tests are the source's own.
        classes: number of classes that the source states; 0: as many as there are labels.

    Raises:
        UserError: a part cannot be used, or is of another shape or type than the first one.
    """
    first = parts[0]
    values = []
    for part in parts:
        x, scale, shift = _checked(part, first)
        values.append(x)
    y = np.concatenate([part.y for part in parts]).astype(np.int64)
    labels, names = _named(y, parts, classes)
    places = {name: k for k, name in enumerate(dict.fromkeys(part.client for part in parts))}
    sizes = [len(part.y) for part in parts]
    return Raw(
        np.concatenate(values),
        labels,
        names,
        scale,
        shift,
        client=np.repeat([places[part.client] for part in parts], sizes).astype(np.int64),
        test=np.repeat([part.test for part in parts], sizes) if split else None,
        client_names=tuple(places),
    )


def _checked(part: Part, first: Part) -> tuple[np.ndarray, float, float]:
    if part.x.dtype.kind in "US":
        raise UserError(
            f"{part.where}: x is text; valid are numbers: images, features or pixels (text has to be made "
            "into numbers first)"
        )
    if part.y.dtype.kind not in "iu" and part.y.size:
        raise UserError(f"{part.where}: y has type {part.y.dtype}, expected whole numbers from 0")
    check_labels(part.where, part.x, part.y)
    if part.x.shape[1:] != first.x.shape[1:] or part.x.dtype != first.x.dtype:
        raise UserError(
            f"{part.where}: samples of shape {part.x.shape[1:]} and type {part.x.dtype}, expected "
            f"{first.x.shape[1:]} and {first.x.dtype} as in {first.where}"
        )
    return samples(part.where, part.x)


def _named(y: np.ndarray, parts: Sequence[Part], classes: int) -> tuple[np.ndarray, list[str]]:
    """Labels 0..C-1 and their names: all that the source states, else those that occur."""
    if not classes:
        values, labels = np.unique(y, return_inverse=True)
        return labels.astype(np.int64), [str(v) for v in values]
    for part in parts:
        if part.y.max() >= classes:
            row = int(np.argmax(part.y >= classes))
            raise UserError(
                f"{part.where}: y has the label {part.y[row]} in row {row}, expected 0 to {classes - 1}"
            )
    return y, [str(k) for k in range(classes)]
