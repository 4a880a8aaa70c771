"""Whether samples are token numbers that a network can look up; otherwise it would fail in training."""

from __future__ import annotations

import numpy as np

from amn_mpi.data.federation import Federation, Plan
from amn_mpi.data.raw import Raw
from amn_mpi.errors import UserError


def check(raw: Raw, plan: Plan, vocabulary: int) -> None:
    """Hold the samples of the clients that take part against the vocabulary; 0: they are no tokens.

    Raises:
        UserError: names the data, the client and the first number that is no token.
    """
    fed = plan.federation
    if not _concerned(fed, vocabulary):
        return
    for client, (start, stop) in enumerate(zip(fed.start, fed.start[1:])):
        wrong = _wrong(raw.x[plan.order[start:stop]], vocabulary)
        if not wrong.size:
            continue
        named = f" ({raw.client_names[raw.client[plan.order[start]]]})" if raw.client is not None else ""
        raise UserError(
            f"{fed.name}: client {client}{named} has the token {_told(wrong[0])}; valid are whole numbers "
            f"from 0, which is padding, to {vocabulary - 1} (model.vocabulary = {vocabulary})"
        )


def fit(fed: Federation, vocabulary: int) -> bool:
    """The same question about samples that are in the cache already."""
    if not _concerned(fed, vocabulary):
        return True
    shape = (int(fed.start[-1]), *fed.shape)
    x = np.memmap(fed.path, np.dtype(fed.x_dtype), "r", fed.x_offset, shape)
    return not any(_wrong(x[start:stop], vocabulary).size for start, stop in zip(fed.start, fed.start[1:]))


def _concerned(fed: Federation, vocabulary: int) -> bool:
    """Samples of another shape are refused by the network itself."""
    return vocabulary > 0 and len(fed.shape) == 1


def _wrong(x: np.ndarray, vocabulary: int) -> np.ndarray:
    return x[(x < 0) | (x >= vocabulary) | (x != np.rint(x))]


def _told(value: np.floating) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
