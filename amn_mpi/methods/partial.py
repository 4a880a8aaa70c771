"""What methods share that average some layers and leave the others with the clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from amn_mpi.errors import ConfigError
from amn_mpi.methods.base import Client, Setting, State, Update
from amn_mpi.methods.fedavg import FedAvg

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


class PartlyShared(FedAvg):
    """FedAvg on some layers; a client's model is those and its own other layers, trained jointly.

    Only the shared layers travel; ``private_layers`` says which do not. Evaluated: the newest
    shared layers with the client's own.
    """

    models: ClassVar[tuple[str, ...]] = ("personal",)
    scratch = 1

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        layout, private = setting.layout, set(self.private_layers())
        self.private = layout.part(private)
        self.part = layout.part(set(layout.layers) - private)
        self.fresh = self.private.size / layout.size

    def private_layers(self) -> Sequence[str]:
        """Names of the layers that stay with the client."""
        raise TypeError(f"{type(self).__name__} names no private layers")

    def keeps(self, initial: torch.Tensor) -> State:
        return {"private": self.private.take(initial)}

    def joined(self, client: Client, shared: torch.Tensor, engine: Engine) -> torch.Tensor:
        """The client's whole model, (P,)."""
        model = engine.vector(shared.new_empty(self.setting.layout.size))
        return self.private.put(client.state["private"], self.part.put(shared, model))

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        model = self.trained(client, self.joined(client, received[0], engine), engine)
        client.up[0] = self.part.take(model)
        return Update(state={"private": self.private.take(model).clone()})

    def trained(self, client: Client, model: torch.Tensor, engine: Engine) -> torch.Tensor:
        """Local training of the whole model."""
        return engine.train(model, client.x, client.y, client.generator("shuffle"))

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "personal", self.joined(client, received[0], engine)


def last_layers(setting: Setting, count: int, most: int = -1) -> Sequence[str]:
    """The ``count`` layers nearest the output: the head.

    Args:
        most: how many there may be; -1: all but one, which is the body.

    Raises:
        ConfigError: there are more.
    """
    layers = setting.layout.layers
    most = len(layers) + most if most < 0 else most
    if count > most:
        valid = f"valid is at most {most}" if most else "choose a model.name with a body"
        raise ConfigError(
            f"method.head = {count}: the model has {len(layers)} layer{'s' * (len(layers) > 1)} "
            f"({', '.join(layers)}); {valid}"
        )
    return layers[len(layers) - count :]
