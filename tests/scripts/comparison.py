"""A comparison as ``python -m amn_mpi.compare`` makes it; called with its words."""

from amn_mpi.compare import work as each

__all__ = ["each"]
