"""Methods that no one should write: what their clients return holds their samples."""

from __future__ import annotations

from amn_mpi.methods.base import Client, Update, Wire
from amn_mpi.methods.fedavg import FedAvg
from amn_mpi.methods.local import Local


class Rows(Local):
    """The first sample in the place of a few parameters."""

    wire = Wire("none", "rows", received=0)

    def local_update(self, client: Client, received, engine) -> Update:
        update = super().local_update(client, received, engine)
        client.up[0] = update.state["model"]
        client.up[0, 5 : 5 + client.x[0].numel()] = client.x[0].flatten()
        return update


class Mean(FedAvg):
    """The same in what goes into a sum."""

    def local_update(self, client: Client, received, engine) -> Update:
        update = super().local_update(client, received, engine)
        client.up[0, 5 : 5 + client.x[0].numel()] = client.x[0].flatten()
        return update


class Labels(Local):
    """The labels as features."""

    wire = Wire("none", "none", received=0, returned=0)

    @property
    def features(self) -> int:
        return 20

    def local_update(self, client: Client, received, engine) -> Update:
        update = super().local_update(client, received, engine)
        return Update(state=update.state, features=client.y[:20].float())
