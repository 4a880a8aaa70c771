"""A method of one's own: ``--method.name examples/own_method.py:HeadStart --method.epochs 2``.

FedAvg whose clients first fit the last layer alone, and then the whole network.
"""

from __future__ import annotations

from dataclasses import dataclass

from amn_mpi.config import key
from amn_mpi.methods.base import Client, Update
from amn_mpi.methods.fedavg import FedAvg


@dataclass(frozen=True)
class Options:
    name: str = key("head_start", "method")
    epochs: int = key(1, "passes over the local data for the last layer alone", ge=1)


class HeadStart(FedAvg):
    """What goes down and up, and what the server does with it, stays FedAvg's."""

    Options = Options

    def local_update(self, client: Client, received, engine) -> Update:
        layout = self.setting.layout
        head = layout.part(layout.layers[-1:])
        order = client.generator("head")
        w = engine.train(received[0], client.x, client.y, order, epochs=self.options.epochs, only=head)
        w = engine.train(w.clone(), client.x, client.y, client.generator("shuffle"))
        client.up[0] = w
        return Update()
