"""FedFomo: Zhang, Sapra, Fidler, Yeung, Alvarez, "Personalized Federated Learning with First Order
Model Optimization", ICLR 2021: its equation for the weights and its section on sampling models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi import rng
from amn_mpi.config import key
from amn_mpi.methods.base import Arrived, Client, Method, Setting, State, Update, Wire, held_out, shares

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """The authors download 4 or 9 models beside the client's own and validate on 20 % of its data."""

    name: str = key("fedfomo", "method")
    models: int = key(5, "M: models of others that a client gets in a round", ge=1)
    validation: float = key(0.2, "part of the training samples that weighs models only", gt=0, lt=1)
    epsilon: float = key(0.3, "chance that a slot is filled at random, at first", ge=0, le=1)
    epsilon_decay: float = key(0.05, "what epsilon loses each round, down to 0", ge=0)


class FedFomo(Method):
    """A client weighs the models of others by its own validation loss L_i.

    w_n = max(0, (L_i(theta_i) - L_i(theta_n)) / ||theta_n - theta_i||_2), normalised to sum 1;
    theta = theta_i + sum_n w_n (theta_n - theta_i), then local training. (The authors' code has the
    1-norm as its default.) theta_i is the model from which its last training started, and its own
    trained model is one of the candidates; where no candidate is better, theta_i itself remains:
    both as in the authors' code. The server fills each of the M slots with the client of highest
    affinity P_ij, or with probability epsilon with a random one; P_ij sums the w_n before max and
    normalisation (the authors' code norms them in each round, and can add means of groups of clients
    and of all to the candidates). Evaluated: the trained model.
    """

    Options: ClassVar[Any] = Options
    fresh = 1
    scratch = 2

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        self.count = max(1, min(options.models, setting.clients - 1))
        names = tuple(f"weight_{m}" for m in range(self.count))
        self.wire = Wire("rows", "rows", received=self.count, figures=names, figure_kind="weights")

    # ---- rank 0

    def init(self, initial: torch.Tensor) -> State:
        import torch

        n = self.setting.clients
        return {
            "models": initial.repeat(n, 1),
            "seen": torch.zeros(n, dtype=torch.bool),
            "affinity": torch.zeros(n, n, dtype=torch.float64),
            "sent": torch.full((n, self.count), -1),  # who went into which slot; -1: left empty
        }

    def personalise(self, server: State, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        for row, client in zip(out, map(int, cohort)):
            sent = server["sent"][client]
            sent.fill_(-1)
            for slot, other in enumerate(self.chosen(server, round, client)):
                sent[slot] = other
            for model, other in zip(row, sent.tolist()):
                model.copy_(server["models"][other if other >= 0 else client])

    def chosen(self, server: State, round: int, client: int) -> list[int]:
        """The M clients whose models go to this one; fewer while fewer have trained."""
        seen, affinity = server["seen"].numpy(), server["affinity"][client].numpy()
        left = [j for j in range(len(seen)) if seen[j] and j != client]
        draw = rng.generator(self.setting.seed, "fomo", round, client)
        draw.shuffle(left)  # equal affinities are served in random order
        epsilon = self.options.epsilon - self.options.epsilon_decay * (round - 1)
        found: list[int] = []
        while left and len(found) < self.count:
            by_chance = draw.random() < epsilon
            found.append(left[0] if by_chance else max(left, key=lambda j: affinity[j]))
            left.remove(found[-1])
        return found

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        import torch

        here = torch.from_numpy(cohort)
        server["models"][here] = arrived.rows[:, 0]
        server["seen"][here] = True
        for slot, name in enumerate(self.wire.figures):
            for client, weight in zip(cohort, arrived.figures[name]):
                other = int(server["sent"][client, slot])
                if other >= 0:
                    server["affinity"][client, other] += weight
        return {}

    def attention(self, server: State) -> np.ndarray:
        """Positive affinities, rows sum to 1 or are 0, (1, N, N)."""
        return shares(server["affinity"].clamp_min(0).numpy())[None]

    def server_rows(self, cohort: int) -> float:
        """All models, and the cohort's; affinities and slots."""
        clients, size = self.setting.clients, self.setting.layout.size
        return clients + cohort + clients * (4 * clients + 2 * self.count) / size

    # ---- the client's rank

    def keeps(self, initial: torch.Tensor) -> State:
        return {"model": initial, "start": initial}

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        import torch

        held = held_out(len(client.y), self.options.validation)
        x, y = client.x[held:], client.y[held:]
        own, start = client.state["model"], client.state["start"]
        valid = (client.x[:held], client.y[:held])
        before = engine.loss(start, *valid)
        weights = [self.weight(model, start, before, valid, engine) for model in (own, *received)]
        for slot, model in enumerate(received, 1):
            if torch.equal(model, own):
                weights[slot] = 0.0  # an empty slot: the client's own model counts once
        begin = self.combined(start, [own, *received], weights)
        client.up[0] = engine.train(begin, x, y, client.generator("shuffle"))
        figures = dict(zip(self.wire.figures, weights[1:]))
        return Update(figures, state={"model": client.up[0], "start": begin})

    @staticmethod
    def weight(
        model: torch.Tensor,
        start: torch.Tensor,
        before: float,
        valid: tuple[torch.Tensor, torch.Tensor],
        engine: Engine,
    ) -> float:
        """(L(start) - L(model)) / ||model - start||; 0 for what is no step away."""
        distance = float((model - start).norm())
        weight = (before - engine.loss(model, *valid)) / distance if distance else 0.0
        return weight if math.isfinite(weight) else 0.0

    @staticmethod
    def combined(start: torch.Tensor, candidates: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
        total = sum(max(0.0, weight) for weight in weights)
        model = start.clone()
        for candidate, weight in zip(candidates, weights):
            if weight > 0:
                model.add_(candidate - start, alpha=weight / total)
        return model
