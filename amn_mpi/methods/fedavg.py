"""FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi.config import key
from amn_mpi.methods.base import Arrived, Client, Method, State, Update, Wire

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """FedAvg has no options beyond local training and the cohort."""

    name: str = key("fedavg", "method")


class FedAvg(Method):
    """One model for all: w = sum n_i w_i / sum n_i over the cohort.

    Every client, in the cohort or not, uses the newest global model.
    """

    Options: ClassVar[Any] = Options
    wire = Wire(down="broadcast", up="mean")
    models: ClassVar[tuple[str, ...]] = ("global",)

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        client.up[0] = engine.train(received[0], client.x, client.y, client.generator("shuffle"))
        return Update()

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        server["model"].copy_(arrived.mean[0])
        return {}

    def deployed(
        self, client: Client, received: torch.Tensor, numbers: Mapping[str, float], engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "global", received[0]
