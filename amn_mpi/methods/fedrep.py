"""FedRep: Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized
Federated Learning", ICML 2021, algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from amn_mpi.config import key
from amn_mpi.methods.base import Client, Wire
from amn_mpi.methods.partial import PartlyShared, last_layers

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """The authors take ten passes for the head, then one (or five) for the body."""

    name: str = key("fedrep", "method")
    head: int = key(1, "how many of the last layers (norms count) stay with the client", ge=0)
    head_epochs: int = key(10, "passes that train the head alone", ge=1)
    body_epochs: int = key(0, "passes that train the body alone; 0: as local training says", ge=0)


class FedRep(PartlyShared):
    """First the head with the body fixed, then the body with the head fixed; bodies are averaged
    over the cohort without weights.

    Evaluated: the newest body with the client's head, without the last head training that the
    authors add after the final round.
    """

    Options: ClassVar[Any] = Options
    wire = Wire(down="broadcast", up="mean", weights="equal")

    def private_layers(self) -> Sequence[str]:
        return last_layers(self.setting, self.options.head)

    def trained(self, client: Client, model: torch.Tensor, engine: Engine) -> torch.Tensor:
        o, x, y = self.options, client.x, client.y
        order = client.generator("head")
        model = engine.train(model, x, y, order, epochs=o.head_epochs, only=self.private)
        order = client.generator("shuffle")
        return engine.train(model, x, y, order, epochs=o.body_epochs, only=self.part)
