"""Personalised federated learning at HPC scale, over MPI.

``amn_mpi.train(config)`` runs from a script; see ``amn_mpi.api``.
"""

__version__ = "0.1.0"

_LAZY = {
    "train": "api",
    "UserError": "errors",
    "ConfigError": "errors",
    "Diverged": "errors",
    "Stopped": "errors",
}


def __getattr__(name: str) -> object:
    """Imported when asked for: every rank pays for an import, and ``early`` has to come before any."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
