"""FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi.config import key
from amn_mpi.methods.base import Arrived, Client, State, Update, Wire
from amn_mpi.methods.offsets import ClassOffsets, prior_key

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


CONTROL = "with AMN's class offsets: a control of this project"


@dataclass(frozen=True)
class Options:
    """FedAvg has no options beyond local training and the cohort; ``prior`` is this project's."""

    name: str = key("fedavg", "method")
    prior: float = prior_key(0.0)


class FedAvg(ClassOffsets):
    """One model for all: w = sum n_i w_i / sum n_i over the cohort.

    Every client, in the cohort or not, uses the newest global model. With ``prior`` above 0, which is not
    published but a control for AMN, w is without offsets, and each client uses it with its own.
    """

    Options: ClassVar[Any] = Options
    wire = Wire(down="broadcast", up="mean")
    models: ClassVar[tuple[str, ...]] = ("global",)

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        up, offset = client.up[0], self.offset(client.y)
        start = self.shifted(received[0], offset, room=up)
        up.copy_(engine.train(start, client.x, client.y, client.generator("shuffle")))
        self.shifted(up, -offset, room=up)
        return Update()

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        server["model"].copy_(arrived.mean[0])
        return {}

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "global", self.to_client(received[0], client.y)

    @classmethod
    def apart(cls, options: Mapping[str, Any]) -> str:
        return CONTROL if options.get("prior") else super().apart(options)
