"""LG-FedAvg: Liang, Liu, Ziyin, Salakhutdinov, Morency, "Think Locally, Act Globally: Federated
Learning with Local and Global Representations", arXiv:2001.01523, algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amn_mpi.config import key
from amn_mpi.methods.partial import PartlyShared, last_layers


@dataclass(frozen=True)
class Options:
    """The authors' commands share the last three of five layers (MNIST), others usually the last."""

    name: str = key("lg_fedavg", "method")
    head: int = key(1, "how many of the last layers are shared", ge=1)


class LGFedAvg(PartlyShared):
    """The other way round than FedPer: the head is averaged by samples (in the authors' code plainly), each
    client's own body stays.

    It starts from the common initial model; the authors' experiments start from a model that
    FedAvg has trained for hundreds of rounds.
    """

    Options: ClassVar[Any] = Options

    def private_layers(self) -> Sequence[str]:
        head = last_layers(self.setting, self.options.head)
        return [layer for layer in self.setting.layout.layers if layer not in head]
