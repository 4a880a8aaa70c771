"""FedALA: Zhang, Hua, Wang, Song, Xue, Ma, Guan, "FedALA: Adaptive Local Aggregation for Personalized
Federated Learning", AAAI 2023, algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi.config import key
from amn_mpi.methods.base import Client, Setting, State, Update
from amn_mpi.methods.fedavg import FedAvg
from amn_mpi.methods.partial import last_layers

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


WINDOW, SPREAD, MOST_PASSES = 10, 0.1, 50


@dataclass(frozen=True)
class Options:
    """Defaults are the authors'."""

    name: str = key("fedala", "method")
    eta: float = key(1.0, "step size of the weights", gt=0)
    samples: float = key(0.8, "s: part of the training samples that trains the weights", gt=0, le=1)
    head: int = key(1, "p: the last layers that are merged by weights; below them the global model", ge=1)


class FedALA(FedAvg):
    """FedAvg whose clients merge the global model into their own, number by number.

    theta^ = theta_i + (theta - theta_i) W in the last p layers, theta below them; W in [0, 1] is
    trained by W <- clip(W - eta (dL/dtheta^) (theta - theta_i)) on a part of the local samples:
    until its loss settles the first time (the spread of ten passes' losses under 0.1, at most fifty
    passes), one pass afterwards. A pass includes the last, smaller batch, and its loss is that
    batch's. Then local training from theta^. There is nothing to merge before a client has trained.
    Evaluated as by the authors: theta^ from the newest global model, merged for the evaluation alone
    (with draws of its own); beside it the model after local training.
    """

    Options: ClassVar[Any] = Options
    models: ClassVar[tuple[str, ...]] = ("merged", "local")
    scratch = 3

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        layout = setting.layout
        self.top = layout.part(last_layers(setting, options.head, most=len(layout.layers)))
        self.fresh = 1 + self.top.size / layout.size

    def keeps(self, initial: torch.Tensor) -> State:
        weights = self.top.take(initial).new_ones(self.top.size)
        return {"model": initial, "weights": weights, "merges": initial.new_full((1,), -1.0)}

    def merged(
        self, client: Client, theta: torch.Tensor, engine: Engine
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(theta^, W, merges so far); before the client's first training: the global model."""
        weights, merges = engine.vector(client.state["weights"]), client.state["merges"]
        model = engine.vector(theta)
        if merges < 0:
            return model, weights, merges + 1
        own = engine.vector(self.top.take(client.state["model"]))
        apart = self.top.take(model) - own
        self._merge(model, own, apart, weights)
        losses: list[float] = []
        while not self._settled(losses, first=float(merges) == 0):
            for _ in self._batches(client, engine):
                slope = self.top.take(engine.slope(model, decay=False))
                weights.sub_(slope * apart, alpha=self.options.eta).clamp_(0, 1)
                self._merge(model, own, apart, weights)
            losses.append(engine.batch_loss())  # of the pass's last batch
        model.copy_(theta)  # the passes have moved running statistics
        self._merge(model, own, apart, weights)
        return model, weights, merges + 1

    def _merge(
        self, model: torch.Tensor, own: torch.Tensor, apart: torch.Tensor, weights: torch.Tensor
    ) -> None:
        self.top.put(own + apart * weights, model)

    @staticmethod
    def _settled(losses: list[float], first: bool) -> bool:
        if not first or len(losses) >= MOST_PASSES:
            return len(losses) > 0
        return len(losses) > WINDOW and float(np.std(losses[-WINDOW:])) < SPREAD

    def _batches(self, client: Client, engine: Engine) -> Iterator[int]:
        """One pass over a random stretch of the samples, drawn anew each round."""
        count = max(1, int(self.options.samples * len(client.y)))
        first = int(client.generator("stretch").integers(len(client.y) - count + 1))
        part = slice(first, first + count)
        return engine.batches(client.x[part], client.y[part], client.generator("weights"), epochs=1)

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        start, weights, merges = self.merged(client, received[0], engine)
        model = engine.train(start, client.x, client.y, client.generator("shuffle"))
        client.up[0] = model
        return Update(state={"model": model.clone(), "weights": weights, "merges": merges})

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "merged", self.merged(client, received[0], engine)[0]
        yield "local", client.state["model"]
