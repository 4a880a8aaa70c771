"""Batches of clients of unequal size, step after step in stacked form.

Clients come in the order of their steps, most first: those that still have one are then the first
k, and nobody waits for another's steps. Within a step, a batch smaller than the largest is filled up
with a sample of its own client that counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch


class Samples(NamedTuple):
    """A client's samples, and in which order they come: (steps, most in a batch), -1 where there is none."""

    x: torch.Tensor
    y: torch.Tensor
    order: np.ndarray


class Step(NamedTuple):
    """One batch of each of the first k clients.

    Attributes:
        share: (k, b), what a sample counts; 0 where it fills up.
    """

    clients: int
    x: torch.Tensor
    y: torch.Tensor
    share: torch.Tensor


def shuffled(samples: int, size: int, steps: int, generator: np.random.Generator) -> np.ndarray:
    """The order of ``steps`` batches: passes, each by a permutation as the reference engine draws it."""
    each = -(-samples // size)
    passes = [in_order(samples, size, generator.permutation(samples)) for _ in range(-(-steps // each))]
    return np.concatenate(passes)[:steps]


def in_order(samples: int, size: int, order: np.ndarray | None = None) -> np.ndarray:
    """One pass in batches of ``size``."""
    steps = -(-samples // size)
    found = np.full(steps * size, -1, dtype=np.int32)
    found[:samples] = np.arange(samples) if order is None else order
    return found.reshape(steps, size)


def in_lockstep(clients: Sequence[Samples], device: torch.device, whole: bool = False) -> Iterator[Step]:
    """All steps of all clients.

    Args:
        clients: by descending number of steps.
        whole: the mean is that over all samples of a client, else over each batch.
    """
    lengths = np.array([len(client.order) for client in clients])
    most = max(client.order.shape[1] for client in clients)
    index = np.full((lengths.max(), len(clients), most), -1, dtype=np.int32)
    first = np.cumsum([0, *(len(client.y) for client in clients[:-1])], dtype=np.int32)
    for k, client in enumerate(clients):
        index[: lengths[k], k, : client.order.shape[1]] = client.order
    real = index >= 0
    sizes = real.sum(2)  # (steps, clients)
    counts = np.array([len(client.y) for client in clients]) if whole else sizes
    share = (real / np.maximum(counts, 1)[..., None]).astype(np.float32)
    index = np.maximum(index, 0) + first[:, None]
    where, shares = torch.from_numpy(index).to(device), torch.from_numpy(share).to(device)
    x, y = _joined([client.x for client in clients]), _joined([client.y for client in clients])
    for s, widest in enumerate(sizes.max(1).tolist()):
        k = int((lengths > s).sum())
        some = where[s, :k, :widest].reshape(-1)
        batch = x.index_select(0, some).view(k, widest, *x.shape[1:])
        yield Step(k, batch, y.index_select(0, some).view(k, widest), shares[s, :k, :widest])


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
