"""HeurFedAMP: Huang et al., "Personalized Cross-Silo Federated Learning on Non-IID Data", AAAI 2021,
the section on the heuristic form of FedAMP for deep networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from amn_mpi.config import key
from amn_mpi.methods.base import Arrived, State
from amn_mpi.methods.fedamp import FedAMP
from amn_mpi.methods.mixing import Columns

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Options:
    """Public implementations set the self weight to one in the number of clients, or to 0.1."""

    name: str = key("heur_fedamp", "method")
    lam: float = key(1.0, "lambda: weight of the attraction", ge=0)
    alpha: float = key(1.0, "alpha_k: divides lambda in the client's problem", gt=0)
    sigma: float = key(25.0, "sharpness of the attention in cosines", ge=0)
    self_weight: float = key(0.1, "xi_ii: weight of the client's own model", ge=0, lt=1)
    start: Literal["own", "message"] = key("own", "where a client's SGD starts: its own model, or u_i")


class HeurFedAMP(FedAMP):
    """xi_ij = (1 - xi_ii) softmax over j != i of sigma cos(w_i, w_j), of whole models as they are."""

    Options: ClassVar[Any] = Options

    def init(self, initial: torch.Tensor) -> State:
        import torch

        # <w_i - w_0, w_0>: with the inner products about w_0 they give those of the models.
        return {**super().init(initial), "along": torch.zeros(self.setting.clients, dtype=torch.float64)}

    def learn(self, server: State, round: int, arrived: Arrived, measured: torch.Tensor) -> dict[str, Any]:
        server["along"][arrived.cohort] = measured[:, :, -1].sum(0)
        return super().learn(server, round, arrived, measured)

    def numbers(self, round: int) -> int:
        return self.setting.clients + 1

    def measure(self, round: int, cohort: np.ndarray, columns: Columns) -> torch.Tensor:
        import torch

        along = (columns.rows[:, 0] - columns.reference) @ columns.reference
        return torch.cat([super().measure(round, cohort, columns), along[:, None]], 1)

    def listening(self, server: State) -> torch.Tensor:
        import torch

        along, square = server["along"], float(server["reference"].double().square().sum())
        dots = server["inner"] + along[:, None] + along + square
        norms = dots.diagonal().clamp_min(1e-30).sqrt()
        logits = self.options.sigma * dots / (norms[:, None] * norms)
        heard = server["seen"] & ~torch.eye(len(norms), dtype=torch.bool)
        shares = torch.softmax(logits.masked_fill(~heard, -torch.inf), dim=1)
        return (1 - self.options.self_weight) * shares.nan_to_num(0.0)
