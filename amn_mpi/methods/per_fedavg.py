"""Per-FedAvg: Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with Theoretical
Guarantees: A Model-Agnostic Meta-Learning Approach", NeurIPS 2020, algorithm 1, in the two forms of
its section 5: first-order (FO) and Hessian-free (HF)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from amn_mpi.config import key
from amn_mpi.methods.base import Client, Update, Wire
from amn_mpi.methods.fedavg import FedAvg

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """The meta step beta is ``local.lr``; the paper's experiments adapt by one step."""

    name: str = key("per_fedavg", "method")
    hessian: Literal["first_order", "hessian_free"] = key("first_order", "FO or HF form of the gradient")
    alpha: float = key(0.01, "step size of the adaptation", gt=0)
    delta: float = key(0.001, "half width of HF's difference of gradients", gt=0)
    adapt_steps: int = key(1, "steps by which a client adapts the global model for its own use", ge=1)


class PerFedAvg(FedAvg):
    """Clients descend on F_i(w) = f_i(w - alpha grad f_i(w)); the server averages without weights.

    A local step takes a new batch for each of its gradients, as the paper asks: two for FO, three
    for HF. A round goes through as many batches as FedAvg's, so it makes fewer steps; where the
    batches run out within a step, the last one serves again.
    """

    Options: ClassVar[Any] = Options
    wire = Wire(down="broadcast", up="mean", weights="equal")
    models: ClassVar[tuple[str, ...]] = ("adapted", "global")
    plain_sgd = True
    scratch = 5

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        o, w = self.options, engine.vector(received[0])
        batches = engine.batches(client.x, client.y, client.generator("shuffle"))
        for _ in batches:
            adapted = w - o.alpha * engine.slope(w)
            next(batches, None)
            step = engine.slope(adapted).clone()
            if o.hessian == "hessian_free":
                next(batches, None)
                ahead = engine.slope(w + o.delta * step).clone()
                behind = engine.slope(w - o.delta * step)
                step -= o.alpha / (2 * o.delta) * (ahead - behind)
            w -= engine.local.lr * step
        client.up[0] = w
        return Update()

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        w, steps = engine.vector(received[0]), self.options.adapt_steps
        batches = engine.batches(client.x, client.y, client.generator("adapt"), epochs=steps)
        for _ in islice(batches, steps):
            w -= self.options.alpha * engine.slope(w)
        yield "adapted", w
        yield "global", received[0]
