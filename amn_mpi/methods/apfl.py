"""APFL: Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", arXiv:2003.13461,
algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from amn_mpi.config import key
from amn_mpi.methods.base import Client, State, Update, Wire
from amn_mpi.methods.fedavg import FedAvg

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """alpha = 0 is FedAvg's global model, alpha = 1 is Local."""

    name: str = key("apfl", "method")
    alpha: float = key(0.5, "share of the personal model at the start", ge=0, le=1)
    adaptive: bool = key(True, "each client learns its alpha")


class APFL(FedAvg):
    """Two models a client: w (FedAvg's) and v, of which it uses u = alpha v + (1 - alpha) w.

    Each step: w <- w - eta grad f(w), v <- v - eta alpha grad f(u), both from the old w and v (the
    factor alpha is the chain rule of grad_v f(u)). With ``adaptive``, the first step of a round
    also moves alpha by -eta <v - w, grad f(u)>, clipped to [0, 1]: once a round, as in the authors'
    code, and without the regulariser that code adds. The server averages w over the cohort without
    weights. Evaluated is u with the client's own w at the end of its turn, as by the authors (whose
    code mixes the outputs of the two networks in place of their parameters).
    """

    Options: ClassVar[Any] = Options
    wire = Wire(down="broadcast", up="mean", weights="equal")
    models: ClassVar[tuple[str, ...]] = ("mixed", "global")
    plain_sgd = True
    fresh = 2
    scratch = 3

    def keeps(self, initial: torch.Tensor) -> State:
        alpha = initial.new_full((1,), self.options.alpha)
        return {"personal": initial, "mixed": initial, "alpha": alpha}

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        w, v = engine.vector(received[0]), engine.vector(client.state["personal"])
        alpha, lr, trained = float(client.state["alpha"]), engine.local.lr, self.setting.layout.trained
        moves = self.options.adaptive
        for _ in engine.batches(client.x, client.y, client.generator("shuffle")):
            mixed, apart, share = v.lerp(w, 1 - alpha), v - w, alpha
            w -= lr * engine.slope(w)
            slope = engine.slope(mixed)
            if moves:
                alpha = min(1.0, max(0.0, alpha - lr * float(apart @ slope)))
                moves = False
            v -= lr * share * slope
            v[trained:] = mixed[trained:]
        client.up[0] = w
        kept = client.state["alpha"].new_tensor([alpha])
        return Update(state={"personal": v, "mixed": v.lerp(w, 1 - float(kept)), "alpha": kept})

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "mixed", client.state["mixed"]
        yield "global", received[0]
