"""SCAFFOLD: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020, algorithm 1 with option II for the control variates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi.config import key
from amn_mpi.methods.base import Arrived, Client, State, Update, Wire
from amn_mpi.methods.fedavg import FedAvg

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """The paper's experiments take a global step of 1."""

    name: str = key("scaffold", "method")
    global_lr: float = key(1.0, "step size of the server", gt=0)


class Scaffold(FedAvg):
    """Local steps y <- y - eta (g_i(y) - c_i + c), then c_i <- c_i - c + (x - y) / (K eta).

    Server: x <- x + eta_g mean(y - x), c <- c + |S| / N mean(change of c_i), both over the cohort
    S and without weights. Who sits out keeps its c_i, so that c stays the mean of all c_i.
    """

    Options: ClassVar[Any] = Options
    wire = Wire(
        down="broadcast",
        up="mean",
        received=2,
        returned=2,
        weights="equal",
        kinds=("parameter differences", "control variates"),
    )
    plain_sgd = True
    fresh = 1
    scratch = 2

    def init(self, initial: torch.Tensor) -> State:
        return {"model": initial.clone(), "control": initial.new_zeros(initial.shape)}

    def personalise(self, server: State, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        out[0, 0], out[0, 1] = server["model"], server["control"]

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        moved, changed = arrived.mean
        trained, step = self.setting.layout.trained, self.options.global_lr
        server["model"][:trained].add_(moved[:trained], alpha=step)
        server["model"][trained:].add_(moved[trained:], alpha=min(1.0, step))  # a variance stays positive
        server["control"].add_(changed, alpha=len(cohort) / self.setting.clients)
        return {}

    def server_rows(self, cohort: int) -> float:
        return 2.0

    def keeps(self, initial: torch.Tensor) -> State:
        return {"control": initial.new_zeros(initial.shape)}

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        (x, c), own = received, client.state["control"]
        moved, changed = client.up
        y = engine.train(x, client.x, client.y, client.generator("shuffle"), shift=c - own)
        moved.copy_(y).sub_(x)
        changed.copy_(moved).mul_(-1 / (engine.steps(len(client.y)) * engine.local.lr)).sub_(c)
        return Update(state={"control": own + changed})
