"""A method whose clients keep a model: ``--method.name examples/own_blend.py:Blend --method.share 0.3``.

FedAvg whose clients start from a blend of the global model and of their own last one.
"""

from __future__ import annotations

from dataclasses import dataclass

from amn_mpi.config import key
from amn_mpi.methods.base import Client, Update
from amn_mpi.methods.fedavg import FedAvg


@dataclass(frozen=True)
class Options:
    name: str = key("blend", "method")
    share: float = key(0.5, "of the client's own last model, where it starts from", ge=0, le=1)


class Blend(FedAvg):
    Options = Options
    models = ("own", "global")  # evaluated; the first is the client's own and stands in models.h5
    fresh = 1  # what a turn allocates and keeps to the round's end, in models: for the forecast of memory
    scratch = 2  # and what it needs meanwhile

    def keeps(self, initial):
        return {"own": initial}  # from round to round, for each client, in checkpoints, too

    def local_update(self, client: Client, received, engine) -> Update:
        share = self.options.share
        start = share * client.state["own"] + (1 - share) * received[0]
        w = engine.train(start, client.x, client.y, client.generator("shuffle"))
        client.up[0] = w  # goes into the mean of all, weighted by samples
        return Update(state={"own": w.clone()})  # w is the engine's workspace: the next client's, soon

    def deployed(self, client: Client, received, engine):
        yield "own", client.state["own"]
        yield "global", received[0]
