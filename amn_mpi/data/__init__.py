"""Data: readers, who gets which samples, the prepared cache, and each client's own rows.

Rank 0 calls ``prepare`` (or ``describe``, which writes nothing); the ``Federation`` goes to all
ranks; each calls ``load_clients`` for its own.
"""

from __future__ import annotations

from amn_mpi.data.clients import ClientData, load_clients
from amn_mpi.data.federation import Federation
from amn_mpi.data.prepare import describe, prepare
from amn_mpi.data.readers import NAMES

__all__ = ["NAMES", "ClientData", "Federation", "describe", "load_clients", "prepare"]
