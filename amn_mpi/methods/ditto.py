"""Ditto: Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
algorithm 1 with FedAvg as the global solver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from amn_mpi.config import key
from amn_mpi.methods.base import Client, Pull, Setting, State, Update
from amn_mpi.methods.fedavg import FedAvg

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """lambda: the paper tries 0.05, 0.1, 0.2 and up to 2."""

    name: str = key("ditto", "method")
    lam: float = key(0.1, "lambda: pull of the personal towards the global model", ge=0)
    personal_epochs: int = key(0, "passes for the personal model; 0: as for the global one", ge=0)


class Ditto(FedAvg):
    """FedAvg's rounds; beside them each client trains v on F_i(v) + lambda / 2 ||v - w_t||^2.

    w_t is the global model as received, and means are weighted by samples (plain in the authors' code,
    which draws clients by their samples). Both solvers see the batches in the same order, so that
    with lambda = 0 the personal model is Local's, bit for bit.
    """

    Options: ClassVar[Any] = Options
    models: ClassVar[tuple[str, ...]] = ("personal", "global")
    fresh = 1

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        self.check_pull(options.lam, setting.local.lr, "local.lr x method.lam")

    def keeps(self, initial: torch.Tensor) -> State:
        return {"personal": initial}

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        super().local_update(client, received, engine)
        personal = engine.train(
            client.state["personal"],
            client.x,
            client.y,
            client.generator("shuffle"),
            epochs=self.options.personal_epochs,
            pull=Pull(received[0], self.options.lam),
        )
        return Update(state={"personal": personal.clone()})

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "personal", client.state["personal"]
        yield "global", received[0]
