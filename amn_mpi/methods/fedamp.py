"""FedAMP: Huang, Chu, Zhou, Wang, Liu, Pei, Zhang, "Personalized Cross-Silo Federated Learning on
Non-IID Data", AAAI 2021, algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from amn_mpi.config import key
from amn_mpi.methods.base import Arrived, Client, Pull, Setting, State, Update, Wire, shares
from amn_mpi.methods.mixing import Columns, Mixing

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """alpha and sigma belong to the scale of squared distances between models."""

    name: str = key("fedamp", "method")
    lam: float = key(1.0, "lambda: weight of the attraction", ge=0)
    alpha: float = key(1.0, "alpha_k: step size of the server", gt=0)
    sigma: float = key(25.0, "width of the attention in squared distances", gt=0)
    start: Literal["own", "message"] = key("own", "where a client's SGD starts: its own model, or u_i")


class FedAMP(Mixing):
    """Message passing: u_i = sum_j xi_ij w_j goes to client i, who minimises
    F_i(w) + lambda / (2 alpha) ||w - u_i||^2.

    xi_ij = alpha A'(||w_i - w_j||^2) for j != i with A(t) = 1 - exp(-t / sigma), of whole models,
    and xi_ii = 1 - sum_j xi_ij; alpha has to be small enough for xi_ii >= 0, and a row for which it
    is not is divided by its sum, with xi_ii = 0. alpha is constant over rounds. The paper leaves
    open where the client's SGD starts; public implementations differ, most take its own model. With a
    weak pull (they have lambda / alpha = 1e-4) only ``start`` message lets a client hear the others.
    In cohorts the newest models of all clients that have trained take part.

    Other ways of mixing clients' newest models can derive from it: ``weights`` is the hook, and
    ``server["inner"]`` holds <w_i - w_0, w_j - w_0>.
    """

    Options: ClassVar[Any] = Options
    wire = Wire(down="rows", up="rows")
    from_start = True

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        strength = options.lam / options.alpha
        self.check_pull(strength, setting.local.lr, "local.lr x method.lam / method.alpha")

    def init(self, initial: torch.Tensor) -> State:
        import torch

        n = self.setting.clients
        return {
            "reference": initial.clone(),
            "seen": torch.zeros(n, dtype=torch.bool),
            "inner": torch.zeros(n, n, dtype=torch.float64),  # <w_i - w_0, w_j - w_0>
        }

    @property
    def matrices(self) -> int:
        return 1

    def mixing(self, server: State, round: int, cohort: np.ndarray) -> torch.Tensor:
        return self.weights(server)[cohort][None]

    def learn(self, server: State, round: int, arrived: Arrived, measured: torch.Tensor) -> dict[str, Any]:
        import torch

        here = torch.from_numpy(arrived.cohort)
        server["seen"][here] = True
        inner = measured[:, :, : self.setting.clients].sum(0)
        server["inner"][here] = inner
        server["inner"][:, here] = inner.T
        own = torch.diagonal(self.weights(server))[server["seen"]]
        return {"self_weight": float(own.mean())}

    def numbers(self, round: int) -> int:
        return self.setting.clients

    def measure(self, round: int, cohort: np.ndarray, columns: Columns) -> torch.Tensor:
        """<w_i - w_0, w_j - w_0> of the new models w_i with the newest of all.

        About a point near all of them, since squared distances are differences of these numbers.
        """
        here = columns.rows[:, 0] - columns.reference
        everyone = columns.models - columns.reference
        everyone[cohort] = here
        return here @ everyone.T

    def weights(self, server: State) -> torch.Tensor:
        """xi, (N, N) float64, rows sum to 1; who has not trained keeps to itself and is not heard."""
        import torch

        others = self.listening(server) * (server["seen"] & server["seen"][:, None])
        others.fill_diagonal_(0)
        others = others / others.sum(1, keepdim=True).clamp_min(1)
        return others + torch.diag(1 - others.sum(1))

    def listening(self, server: State) -> torch.Tensor:
        """xi_ij for j != i."""
        o, inner = self.options, server["inner"]
        square = inner.diagonal()
        distances = (square[:, None] + square - 2 * inner).clamp_min(0)
        return o.alpha / o.sigma * (-distances / o.sigma).exp()

    def attention(self, server: State) -> np.ndarray:
        """Whom each client listens to beside itself, (1, N, N)."""
        return shares(self.weights(server).fill_diagonal_(0).numpy())[None]

    def small_floats(self, cohort: int) -> float:
        return 10 * self.setting.clients**2

    def block_floats(self, cohort: int) -> float:
        return super().block_floats(cohort) + self.setting.clients * self.widest

    def keeps(self, initial: torch.Tensor) -> State:
        return {"model": initial}

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        o, message = self.options, received[0]
        start = message if o.start == "message" else client.state["model"]
        pull = Pull(message, o.lam / o.alpha)
        client.up[0] = engine.train(start, client.x, client.y, client.generator("shuffle"), pull=pull)
        return Update(state={"model": client.up[0]})
