"""IFCA: Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning",
NeurIPS 2020, algorithm 1 with option II (model averaging)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi.config import key
from amn_mpi.methods.base import Arrived, Client, Method, Setting, State, Update, Wire

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """IFCA is told how many groups there are; no other method here is."""

    name: str = key("ifca", "method")
    groups: int = key(4, "number of groups, and so of global models", ge=1, le=1000)


class IFCA(Method):
    """k global models from k random starts; each client joins the one with the lowest loss on all of
    its training samples and trains it; each model becomes the plain mean of its group's.

    A model that nobody chose stays as it is. The paper restarts from other random models where
    groups collapse; here the seed decides. Evaluated: the newest model of the client's group.
    """

    Options: ClassVar[Any] = Options
    models: ClassVar[tuple[str, ...]] = ("group",)
    aside = "is told the number of groups"

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        k = options.groups
        self.wire = Wire(
            "broadcast",
            "mean",
            received=k,
            returned=k,
            weights="equal",
            figures=("group",),
            kinds=("parameters",) * k,
            figure_kind="choices",
        )

    def init(self, initial: torch.Tensor) -> State:
        import torch

        draw = self.setting.draw
        if draw is None:
            raise TypeError("IFCA needs Setting.draw for its starts")
        others = [draw(k) for k in range(1, self.options.groups)]
        return {"models": torch.stack([initial, *others])}

    def personalise(self, server: State, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        out[0] = server["models"]

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        sizes = np.bincount(arrived.figures["group"].astype(int), minlength=self.options.groups)
        for model, mean, size in zip(server["models"], arrived.mean, sizes):
            if size:
                model.copy_(mean * (len(cohort) / size))
        return {"group_sizes": sizes.tolist()}

    def server_rows(self, cohort: int) -> float:
        return self.options.groups + 1.0

    def nearest(self, client: Client, received: torch.Tensor, engine: Engine) -> int:
        """argmin_j F_i(theta_j)."""
        losses = [engine.loss(model, client.x, client.y) for model in received]
        return int(np.argmin(np.nan_to_num(losses, nan=np.inf)))

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        group = self.nearest(client, received, engine)
        client.up.zero_()
        client.up[group] = engine.train(received[group], client.x, client.y, client.generator("shuffle"))
        return Update(figures={"group": float(group)})

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "group", received[self.nearest(client, received, engine)]
