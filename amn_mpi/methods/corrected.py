"""Steps corrected by control variates of the clients that a client listens to.

After Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, where
the mean is that of all clients. See docs/method.md, "Control variates".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

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
    those like it have learnt put in its place. A mean of drifts comes down behind the hybrid. No drift goes
    up: it follows from both, the model that comes back and the length of the client's steps.

    For methods that mix nothing but models and return no figures of their own.
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
        self.wire = replace(
            self.wire,
            received=self.wire.received + 1,
            figures=(*self.wire.figures, "reach"),
            figure_kind="reaches",
        )
        self.mirrors, self.recalls = {**self.mirrors, "drifts": "drift"}, True
        self.scratch += 1
        self.fresh += 1

    @property
    def mirror_kinds(self) -> tuple[str, ...]:
        kinds = super().mirror_kinds
        return (*kinds[:1], "parameter differences") if self.options.drift else kinds

    # ---- wherever a block is

    def ahead(self, columns: Columns) -> torch.Tensor:
        """Where every client would go by itself from its newest model, theta_j - d_j: (N, width)."""
        if not self.options.drift:
            return columns.models
        return self.own_array("ahead", columns.models).sub_(columns.stacks[1])

    def take_over(self, cohort: np.ndarray, columns: Columns, figures: Mapping[str, np.ndarray]) -> None:
        """The models; and the drifts, worked out as each client works out its own, to the bit."""
        import torch

        if not self.options.drift:
            return super().take_over(cohort, columns, figures)
        models, drifts = columns.stacks
        start, heard = columns.sent
        reach = figures["reach"]
        afresh = torch.from_numpy(reach == 0)
        found = self.own_array("found", start)
        shifted = torch.index_select(
            drifts, 0, torch.from_numpy(cohort), out=self._scratch("ahead", *found.shape)
        )
        torch.sub(heard, shifted, out=shifted)
        for scale in (self.options.drift / np.where(afresh, 1, reach), reach):
            shifted *= torch.from_numpy(scale).float()[:, None]
        found.sub_(columns.rows[:, 0])
        found[:, max(0, self.setting.layout.trained - columns.block.start) :] = 0
        found.sub_(shifted)
        found[afresh] = 0
        self._put(cohort, models, columns.rows[:, 0])
        self._put(cohort, drifts, found)

    def block_floats(self, cohort: int) -> float:
        beside = (self.setting.clients + cohort) * self.widest if self.options.drift else 0
        return super().block_floats(cohort) + beside

    # ---- the client's rank

    def keeps(self, initial: torch.Tensor) -> State:
        return {"drift": initial.new_zeros(initial.shape)} if self.options.drift else {}

    def correction(self, client: Client, received: torch.Tensor, reach: float) -> torch.Tensor | None:
        """What is added to each gradient, (P,), where all steps together are ``reach`` = K eta long."""
        if not self.options.drift:
            return None
        return (received[1] - client.state["drift"]).mul_(self.options.drift / reach)

    def drifted(
        self, client: Client, start: torch.Tensor, shifted: torch.Tensor, *rooms: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        """How far a client's own gradients led it, (P,), without what it was ``shifted``; is it afresh?

        Where it still went further than its last drift is long, the correction has led it astray: it starts
        over. A client of few samples would else be pushed up its loss, further each round. Running statistics
        do not drift.

        Args:
            client: its ``up`` holds the model, (P,), first.
            start: what it trained from, (P,).
            shifted: reach times ``correction``, (P,); becomes the drift. A turn's first vector is thus the
                one that stays: a later one would leave a gap that the next turn's vectors do not fit.
            rooms: two of (P,), are overwritten.
        """
        import torch

        own, (way, room) = client.state["drift"], rooms
        torch.sub(start, client.up[0], out=way)
        way[self.setting.layout.trained :] = 0
        went, last = (float(torch.mul(v, v, out=room).sum()) for v in (way, own))
        afresh = 0 < last < went
        return (shifted.zero_() if afresh else torch.sub(way, shifted, out=shifted)), afresh
