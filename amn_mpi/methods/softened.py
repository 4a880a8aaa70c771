"""A held-out gradient that tells the server what a client would gain: softened, and across the layers.

See docs/method.md, "The softened loss".
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from amn_mpi.methods.base import Client
from amn_mpi.methods.offsets import ClassOffsets

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


class SoftenedGradients(ClassOffsets):
    """A method whose clients send such a gradient behind their model; its options have ``soften``."""

    def held_out_gradient(
        self, client: Client, offset: torch.Tensor, held: int, engine: Engine, room: torch.Tensor
    ) -> None:
        """At the local model; it goes where it is sent from. Zeros of a client that holds nothing out.

        Its loss has its scores divided by ``soften``, the offset not. A local model is sure of itself:
        without, few samples on which it errs decide over the loss. In trials the gains of layers stood three
        times as far out of their noise. Divided scores are too unsure, in turn: without the part of the
        gradient along the model, longer models, the means of few, seemed better than those of many.

        Args:
            client: its ``up`` holds the model, (P,), first, and takes the gradient, (P,), last. held: the
                first samples.
            room: (P,), is overwritten.
        """
        model, gradient = client.up[0], client.up[-1]
        if not held:
            gradient.zero_()
            return
        room.copy_(model)
        room[self._scores] /= self.options.soften
        start = self.shifted(room, offset, room=room)
        gradient.copy_(engine.gradient(start, client.x[:held], client.y[:held]))
        gradient[self._scores] /= self.options.soften
        self._across(gradient, model, room)

    def _across(self, gradient: torch.Tensor, model: torch.Tensor, room: torch.Tensor) -> None:
        """In place, layer by layer: without the part along the model, which would only scale the layer.

        No dot products: MKL's round by where a vector lies, so by how many clients are on the rank.
        """
        import torch

        for group in self.setting.layout.groups:
            part, own, free = (vector[group.start : group.stop] for vector in (gradient, model, room))
            along = torch.mul(part, own, out=free).sum()
            length = torch.mul(own, own, out=free).sum()
            part.addcmul_(own, along / length.clamp_min(1e-30), value=-1)

    @cached_property
    def _scores(self) -> slice:
        """The layer that makes the scores, weights and biases; empty where no layer ends with them."""
        biases = self.setting.layout.score_biases
        for group in self.setting.layout.groups:
            if biases is not None and self._fits and group.start <= biases.start < group.stop:
                return slice(group.start, group.stop)
        return slice(0, 0)
