"""pFedMe: Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020,
algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi.config import key
from amn_mpi.methods.base import Arrived, Client, Pull, Setting, State, Update, Wire
from amn_mpi.methods.fedavg import FedAvg

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """eta of the paper is ``local.lr`` (0.005 in the authors' code, whose defaults these are)."""

    name: str = key("pfedme", "method")
    lam: float = key(15.0, "lambda: how close the personal model stays", gt=0)
    inner_steps: int = key(5, "K: gradient steps on each batch for the personal model", ge=1)
    inner_lr: float = key(0.09, "step size of the personal model", gt=0)
    beta: float = key(1.0, "share of the cohort's mean in the new global model", gt=0, le=4)


class PFedMe(FedAvg):
    """Each batch: theta ~ argmin f(theta) + lambda/2 ||theta - w||^2, then w <- w - eta lambda (w - theta).

    The inner problem is solved by K gradient steps on the batch, continued from the last theta (at
    the start of a round from the global model), as in the authors' code. The server averages w over
    the cohort without weights: w <- (1 - beta) w + beta mean. The personal model is theta. Only the
    cohort trains; in the paper all clients do, and only a sample of them is averaged.
    """

    Options: ClassVar[Any] = Options
    wire = Wire(down="broadcast", up="mean", weights="equal")
    models: ClassVar[tuple[str, ...]] = ("personal", "global")
    plain_sgd = True
    fresh = 1
    scratch = 2

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        self.check_pull(options.lam, options.inner_lr, "method.inner_lr x method.lam")

    def keeps(self, initial: torch.Tensor) -> State:
        return {"personal": initial}

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        o, w, theta = self.options, engine.vector(received[0]), engine.parameters
        theta.copy_(w)
        for _ in engine.batches(client.x, client.y, client.generator("shuffle")):
            engine.solve(o.inner_steps, o.inner_lr, Pull(w, o.lam))
            w -= engine.local.lr * o.lam * (w - theta)
        client.up[0] = w
        return Update(state={"personal": theta.clone()})

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        model, mean, trained = server["model"], arrived.mean[0], self.setting.layout.trained
        model[:trained].lerp_(mean[:trained], self.options.beta)
        model[trained:].lerp_(mean[trained:], min(1.0, self.options.beta))  # a variance stays positive
        return {}

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "personal", client.state["personal"]
        yield "global", received[0]
