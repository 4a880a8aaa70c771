"""Data: readers, who gets which samples, the prepared cache, and each client's own rows.

Rank 0 calls ``prepare`` (or ``describe``, which writes nothing); the ``Federation`` goes to all
ranks; each calls ``load_clients`` for its own. Only rank 0 pays for the import of the readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amn_mpi.data.clients import ClientData, load_clients
from amn_mpi.data.federation import Federation

if TYPE_CHECKING:
    from amn_mpi.config import Data

__all__ = ["ClientData", "Federation", "describe", "load_clients", "prepare", "resolved"]


def prepare(data: Data, seed: int, vocabulary: int = 0) -> Federation:
    """See ``preparation.prepare``."""
    from amn_mpi.data import preparation

    return preparation.prepare(data, seed, vocabulary)


def describe(data: Data, seed: int, vocabulary: int = 0) -> Federation:
    """See ``preparation.describe``."""
    from amn_mpi.data import preparation

    return preparation.describe(data, seed, vocabulary)


def resolved(data: Data) -> Data:
    """See ``own_clients.resolved``."""
    from amn_mpi.data import own_clients

    return own_clients.resolved(data)
