"""AMN without one of its parts each, for ``configs/compare/ablation_*.yaml``; other parts are options.

    mpirun -n 3 python -m amn_mpi.compare ablation_fashion_mnist

Each class is a method's name, such as ``benchmarks/ablation.py:WholeModel``, and takes AMN's options.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi.methods.amn import AMN
from amn_mpi.methods.base import Setting, State
from amn_mpi.params import Group

if TYPE_CHECKING:
    import torch


class WithItself(AMN):
    """Without leave-one-out: a client is among those it may listen to, and among all."""

    def _views(self, server: State, cohort: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        similarity, _, _ = super()._views(server, cohort)
        seen = self._seen(server)
        allowed = seen.expand(len(cohort), -1) & seen[cohort][:, None]
        return similarity, allowed, self._common(server).expand(len(cohort), -1)


class Uncentred(AMN):
    """Cosines of the models' sketches as they are: all models start from one initialisation."""

    def _centre(self, server: State) -> torch.Tensor:
        return 0 * server["sketches"][0]

    def _views(self, server: State, cohort: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        _, allowed, common = super()._views(server, cohort)
        sketches = server["features"].transpose(0, 1)
        features = sketches / sketches.norm(dim=2, keepdim=True).clamp_min(1e-30)
        return features[:, cohort] @ features.transpose(1, 2), allowed, common


class WholeModel(AMN):
    """One layer of all parameters: one similarity, one gate."""

    def __init__(self, options: Any, setting: Setting) -> None:
        scores = AMN(options, setting)._scores
        whole = (Group("model", 0, setting.layout.size),)
        super().__init__(options, replace(setting, layout=replace(setting.layout, groups=whole)))
        self._scores = scores  # the held-out loss is softened as it is with layers


class OwnNetworks(AMN):
    """Evidence and gates of each client's own, learnt of its own held-out samples alone.

    One client's gain has no standard error, so the gates go by the price only.
    """

    def init(self, initial: torch.Tensor) -> State:
        state = super().init(initial)
        return {**state, "meta": state["meta"].repeat(self.setting.clients, 1, 1)}

    def mixing(self, server: State, round: int, cohort: np.ndarray) -> torch.Tensor:
        import torch

        if not self._seen(server).any() or round <= self.options.common_rounds:
            return super().mixing(server, round, cohort)
        similarity, allowed, common = self._views(server, cohort)
        rows = []
        for k, client in enumerate(cohort):
            network = self._network({"meta": server["meta"][client]})
            attention = network.attention(similarity[:, k : k + 1], allowed[k : k + 1])
            rows.append(network.mixing(attention, common[k : k + 1]))
        return torch.cat(rows, dim=1)

    def _meta_step(self, server: State, cohort: np.ndarray, inner: torch.Tensor) -> None:
        import torch

        from amn_mpi import meta

        o, judges = self.options, self._judges(cohort)
        similarity, allowed, common = self._views(server, cohort)
        for k, client in enumerate(cohort):
            if not judges[k]:
                continue
            own, logits = slice(k, k + 1), server["meta"][client]
            attention = self._network({"meta": logits}).attention(similarity[:, own], allowed[own])
            alone = torch.ones(1)
            found = meta.lesson(attention, similarity[:, own], common[own], inner[:, own], alone, o.tau)
            self._recall(server, cohort[own], judges[own], found.saved)
            gain = server["gains"][client]
            meta.believe(logits, found.slope, o.evidence_lr)
            meta.open_gates(logits, gain, torch.zeros_like(gain), self._prices, o.gate_lr)

    def attention(self, server: State) -> np.ndarray:
        everyone = np.arange(self.setting.clients)
        similarity, allowed, _ = self._views(server, everyone)
        rows = [
            self._network({"meta": server["meta"][i]}).attention(similarity[:, i : i + 1], allowed[i : i + 1])
            for i in everyone
        ]
        return np.concatenate([row.numpy() for row in rows])[None]

    def _figures(self, server: State) -> dict[str, Any]:
        networks = [self._network({"meta": logits}) for logits in server["meta"]]
        return {
            "gate": np.mean([network.gates.numpy() for network in networks], axis=0).tolist(),
            "evidence": np.mean([network.omega.numpy() for network in networks], axis=0).tolist(),
        }


class LatestFeatures(AMN):
    """Similarities of each client's newest model alone."""

    def _remember(self, server: State, cohort: np.ndarray, sketches: torch.Tensor) -> None:
        super()._remember(server, cohort, sketches)
        server["features"][cohort] = sketches


class InProportion(AMN):
    """A layer's price grows with its share of the parameters, not with a power of it."""

    @cached_property
    def _prices(self) -> torch.Tensor:
        return self.options.price * self._shares


class Lengths(AMN):
    """The part of the held-out gradient that only scales a layer is left in it."""

    def _across(self, gradient: torch.Tensor, model: torch.Tensor, room: torch.Tensor) -> None:
        pass
