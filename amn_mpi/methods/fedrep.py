"""FedRep: Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized
Federated Learning", ICML 2021, algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    fit: bool = key(False, "whether a client trains its head on the newest body before use")


class FedRep(PartlyShared):
    """First the head with the body fixed, then the body with the head fixed; bodies are averaged
    over the cohort without weights.

    Evaluated: the newest body with the client's head; with ``fit`` the head is trained first, as at
    the start of a round. The authors do so after the final round only, and it is thrown away here.
    """

    Options: ClassVar[Any] = Options
    wire = Wire(down="broadcast", up="mean", weights="equal")

    def private_layers(self) -> Sequence[str]:
        return last_layers(self.setting, self.options.head)

    def trained(self, client: Client, model: torch.Tensor, engine: Engine) -> torch.Tensor:
        model = self._fitted(client, model, engine, "head")
        order, epochs = client.generator("shuffle"), self.options.body_epochs
        return engine.train(model, client.x, client.y, order, epochs=epochs, only=self.part)

    def _fitted(self, client: Client, model: torch.Tensor, engine: Engine, purpose: str) -> torch.Tensor:
        """The model with its head trained."""
        order, epochs = client.generator(purpose), self.options.head_epochs
        return engine.train(model, client.x, client.y, order, epochs=epochs, only=self.private)

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for name, model in super().deployed(client, received, engine):
            yield name, self._fitted(client, model, engine, "fit") if self.options.fit else model
