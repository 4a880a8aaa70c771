"""FedBN: Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization", ICLR 2021, algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amn_mpi.config import key
from amn_mpi.errors import ConfigError
from amn_mpi.methods.base import Wire
from amn_mpi.methods.partial import PartlyShared


@dataclass(frozen=True)
class Options:
    """FedBN has no options; it needs a model with batch normalisation."""

    name: str = key("fedbn", "method")


class FedBN(PartlyShared):
    """Batch-norm layers stay with the client, scale, shift and running statistics; the rest is
    averaged over the cohort without weights."""

    Options: ClassVar[Any] = Options
    wire = Wire(down="broadcast", up="mean", weights="equal")
    aside = "trains the batch-norm form of the model"

    def private_layers(self) -> Sequence[str]:
        layers = self.setting.layout.normalised
        if not layers:
            raise ConfigError(
                "method.name = fedbn: the model has no batch normalisation; model.name = mlp_bn, "
                "cnn_bn and lenet5_bn have"
            )
        return layers
