"""All methods by name. A new one is one file in this folder and one line here.

The entries are imported when they are asked for: 33 ranks pay for every import.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING

from amn_mpi import plugin
from amn_mpi.methods.base import Method

if TYPE_CHECKING:
    from amn_mpi.config import Config

METHODS: dict[str, str] = {
    "amn": "amn_mpi.methods.amn:AMN",
    "local": "amn_mpi.methods.local:Local",
    "fedavg": "amn_mpi.methods.fedavg:FedAvg",
    "fedavg_ft": "amn_mpi.methods.fedavg_ft:FedAvgFinetuned",
    "fedprox": "amn_mpi.methods.fedprox:FedProx",
    "scaffold": "amn_mpi.methods.scaffold:Scaffold",
    "per_fedavg": "amn_mpi.methods.per_fedavg:PerFedAvg",
    "pfedme": "amn_mpi.methods.pfedme:PFedMe",
    "ditto": "amn_mpi.methods.ditto:Ditto",
    "apfl": "amn_mpi.methods.apfl:APFL",
    "fedper": "amn_mpi.methods.fedper:FedPer",
    "fedrep": "amn_mpi.methods.fedrep:FedRep",
    "lg_fedavg": "amn_mpi.methods.lg_fedavg:LGFedAvg",
    "fedbn": "amn_mpi.methods.fedbn:FedBN",
    "fedamp": "amn_mpi.methods.fedamp:FedAMP",
    "heur_fedamp": "amn_mpi.methods.heur_fedamp:HeurFedAMP",
    "fedfomo": "amn_mpi.methods.fedfomo:FedFomo",
    "pfedhn": "amn_mpi.methods.pfedhn:PFedHN",
    "fedala": "amn_mpi.methods.fedala:FedALA",
    "ifca": "amn_mpi.methods.ifca:IFCA",
}
DEFAULT = "amn"


VALID = f"{', '.join(METHODS)}, or {plugin.FORM}"


def known(name: object) -> bool:
    """Whether it is a method's name, or has the form of one in a user's own file."""
    return isinstance(name, str) and (name in METHODS or plugin.is_file(name))


def get(name: str, key: str = "method.name") -> type[Method]:
    """The method's class.

    Raises:
        ConfigError: it is in a file that cannot be used; the line begins with ``key``.
    """
    if plugin.is_file(name):
        return plugin.method(name, key)
    module, _, cls = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def listed(names: str) -> list[str]:
    """Names out of a text that separates them by commas."""
    return [name for name in names.replace(" ", "").split(",") if name]


def baseline(config: Config, name: str) -> Config:
    """The configuration with another method as it is by default, sharded only if it can be."""
    server = "auto" if config.server == "sharded" else config.server
    return dataclasses.replace(config, method=options(name)(name=name), server=server)


def options(name: str) -> type:
    """The frozen dataclass of the method's options."""
    return get(name).Options
