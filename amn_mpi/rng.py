"""All randomness: a generator is a function of (seed, purpose, round, client), of nothing else.

Nothing random is ever stored, no generator is shared between ranks, and a resumed run draws what
an unbroken one would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Generator for one purpose (``"shuffle"``, ``"cohort"``, ...) in one round for one client."""
    word = int.from_bytes(hashlib.blake2s(purpose.encode(), digest_size=8).digest(), "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, word, round, client])))


def torch_seed(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed for ``torch.Generator.manual_seed``."""
    return int(generator(seed, purpose, round, client).integers(2**63 - 1))


def cohort(seed: int, round: int, clients: int, fraction: float) -> np.ndarray:
    """Clients of one round, ascending: ``max(1, round(fraction * clients))`` drawn without return.

    Every rank computes it for itself, so it needs no message.
    """
    if fraction >= 1.0:
        return np.arange(clients)
    size = max(1, int(np.floor(fraction * clients + 0.5)))
    return np.sort(generator(seed, "cohort", round).choice(clients, size, replace=False))
