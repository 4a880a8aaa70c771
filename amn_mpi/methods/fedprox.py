"""FedProx: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, algorithm 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from amn_mpi.config import key
from amn_mpi.methods.base import Client, Pull, Setting, Update
from amn_mpi.methods.fedavg import FedAvg

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """mu: the paper tries 0.001, 0.01, 0.1 and 1."""

    name: str = key("fedprox", "method")
    mu: float = key(0.1, "strength of the proximal term", ge=0)


class FedProx(FedAvg):
    """FedAvg whose clients minimise F_i(w) + mu / 2 ||w - w_t||^2 from the global model w_t.

    Inexactness is what SGD over the configured epochs leaves; all clients do the same work. Means are
    weighted by samples over a uniform cohort, as in the authors' code; the paper draws clients by
    their samples and takes plain means.
    """

    Options: ClassVar[Any] = Options

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        self.check_pull(options.mu, setting.local.lr, "local.lr x method.mu")

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        pull = Pull(received[0], self.options.mu)
        order = client.generator("shuffle")
        client.up[0] = engine.train(received[0], client.x, client.y, order, pull=pull)
        return Update()
