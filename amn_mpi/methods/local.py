"""Local: every client trains alone. The floor that collaboration has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from amn_mpi.config import key
from amn_mpi.methods.base import Client, Method, State, Update, Wire

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """Local has no options."""

    name: str = key("local", "method")


class Local(Method):
    """No exchange at all: the model stays with its client."""

    Options = Options
    wire = Wire(down="none", up="none", received=0, returned=0)
    fresh = 1

    def keeps(self, initial: torch.Tensor) -> State:
        return {"model": initial}

    def welcome(self, server: State, initial: torch.Tensor) -> torch.Tensor:
        return initial

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        model = engine.train(client.state["model"], client.x, client.y, client.generator("shuffle"))
        return Update(state={"model": model.clone()})
