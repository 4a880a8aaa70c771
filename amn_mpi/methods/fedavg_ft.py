"""FedAvg with local fine-tuning before use: Yu et al., "Salvaging Federated Learning by Local
Adaptation", arXiv:2002.04758, section 3 (fine-tuning)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from amn_mpi.config import key
from amn_mpi.methods.base import Client, Setting
from amn_mpi.methods.fedavg import FedAvg
from amn_mpi.methods.offsets import prior_key
from amn_mpi.methods.partial import last_layers

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine
    from amn_mpi.params import Part


@dataclass(frozen=True)
class Options:
    """How long a client fine-tunes is left open by the paper; here as long as it trains in a round."""

    name: str = key("fedavg_ft", "method")
    head: int = key(0, "how many of the last layers are fine-tuned; 0: all", ge=0)
    epochs: int = key(0, "passes of the fine-tuning; 0: as local training says", ge=0)
    prior: float = prior_key(0.0)


class FedAvgFinetuned(FedAvg):
    """FedAvg's rounds; each client uses the global model after local training of its own.

    The tuned model is thrown away after evaluation, so the global model never sees it.
    """

    Options: ClassVar[Any] = Options
    models: ClassVar[tuple[str, ...]] = ("finetuned", "global")

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        self.scratch += self.prior > 0  # the model that fine-tuning starts from
        self.tuned = self._head(options.head) if options.head else None

    def _head(self, count: int) -> Part:
        layout = self.setting.layout
        return layout.part(last_layers(self.setting, count, most=len(layout.layers)))

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        order, model = client.generator("finetune"), self.to_client(received[0], client.y)
        epochs = self.options.epochs
        yield "finetuned", engine.train(model, client.x, client.y, order, epochs=epochs, only=self.tuned)
        yield from super().deployed(client, received, engine)
