"""All methods by name. A new one is one file in this folder and one line here.

The entries are imported when they are asked for: 33 ranks pay for every import.
"""

from __future__ import annotations

import importlib

from amn_mpi.methods.base import Method

METHODS: dict[str, str] = {
    "amn": "amn_mpi.methods.amn:AMN",
    "local": "amn_mpi.methods.local:Local",
    "fedavg": "amn_mpi.methods.fedavg:FedAvg",
    "fedavg_ft": "amn_mpi.methods.fedavg_ft:FedAvgFinetuned",
}
DEFAULT = "amn"


def get(name: str) -> type[Method]:
    """The method's class."""
    module, _, cls = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def listed(names: str) -> list[str]:
    """Names out of a text that separates them by commas."""
    return [name for name in names.replace(" ", "").split(",") if name]


def options(name: str) -> type:
    """The frozen dataclass of the method's options."""
    return get(name).Options
