"""Steps corrected by control variates of the clients that a client listens to.

After Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, where
the mean is that of all clients. See docs/method.md, "Control variates".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from amn_mpi.config import key
from amn_mpi.errors import ConfigError
from amn_mpi.methods.base import Client, Setting, State
from amn_mpi.methods.mixing import Columns, Mixing

if TYPE_CHECKING:
    import torch


def drift_key(default: float) -> Any:
    """The option that scales them."""
    told = "part of a client's drift that control variates take off its steps; 0: none"
    return key(default, told, ge=0, le=1)


class CorrectedSteps(Mixing):
    """A method that mixes models and, where ``method.drift`` r is above 0, by the same weights drifts.

    A client's drift d_i is how far its own gradients led it in its newest round. K steps of eta take
    g - r (d_i - sum_j w_ij d_j) / (K eta) in place of g: what a client learns by heart is taken off, and what
    those like it have learnt put in its place. A drift goes up behind the model, a mean of drifts comes down
    behind the hybrid.
    """

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        if not options.drift:
            return
        if setting.local.momentum:
            raise ConfigError(
                f"local.momentum = {setting.local.momentum}: method.drift = {options.drift} corrects steps "
                "without momentum; valid is 0, or method.drift 0"
            )
        model, *others = self.wire.kinds
        self.wire = replace(
            self.wire,
            received=self.wire.received + 1,
            returned=self.wire.returned + 1,
            kinds=(model, "parameter differences", *others),
        )
        self.mirrors = {**self.mirrors, "drifts": "drift"}
        self.scratch += 1

    # ---- wherever a block is

    def ahead(self, columns: Columns) -> torch.Tensor:
        """Where every client would go by itself from its newest model, theta_j - d_j: (N, width)."""
        if not self.options.drift:
            return columns.models
        return self.own_array("ahead", columns.models).sub_(columns.stacks[1])

    def block_floats(self, cohort: int) -> float:
        ahead = self.setting.clients * self.widest if self.options.drift else 0
        return super().block_floats(cohort) + ahead

    # ---- the client's rank

    def keeps(self, initial: torch.Tensor) -> State:
        return {"drift": initial.new_zeros(initial.shape)} if self.options.drift else {}

    def correction(self, client: Client, received: torch.Tensor, reach: float) -> torch.Tensor | None:
        """What is added to each gradient, (P,), where all steps together are ``reach`` = K eta long."""
        if not self.options.drift:
            return None
        return (received[1] - client.state["drift"]).mul_(self.options.drift / reach)

    def drifted(
        self, client: Client, start: torch.Tensor, shifted: torch.Tensor, room: torch.Tensor
    ) -> torch.Tensor:
        """How far a client's own gradients led it, (P,), into what it sends: without what it was ``shifted``.

        Where it still went further than its last drift is long, the correction has led it astray: it starts
        over. A client of few samples would else be pushed up its loss, further each round. Running statistics
        do not drift.

        Args:
            client: its ``up`` holds the model, (P,), first, and takes the drift, (P,), next.
            start: what it trained from, (P,). shifted: reach times ``correction``, (P,).
            room: (P,), is overwritten.
        """
        import torch

        own, found = client.state["drift"], client.up[1].copy_(start).sub_(client.up[0])
        found[self.setting.layout.trained :] = 0
        went, last = (float(torch.mul(way, way, out=room).sum()) for way in (found, own))
        found.sub_(shifted)
        if 0 < last < went:
            found.zero_()
        return found
