"""AMN without one of its parts each, for ``configs/compare/ablation_*.yaml``; other parts are options.

    mpirun -n 3 python -m amn_mpi.compare ablation_fashion_mnist

Each class is a method's name, such as ``benchmarks/ablation.py:WholeModel``, and takes AMN's options.
"""

from __future__ import annotations

from dataclasses import replace
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
        seen = server["seen"]
        allowed = seen.expand(len(cohort), -1) & seen[cohort][:, None]
        return similarity, allowed, self._common(server).expand(len(cohort), -1)


class Uncentred(AMN):
    """Cosines of the models' sketches as they are: all models start from one initialisation."""

    def _views(self, server: State, cohort: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        _, allowed, common = super()._views(server, cohort)
        sketches = server["sketches"].transpose(0, 1)
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

        if not server["seen"].any() or round <= self.options.common_rounds:
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

        o, (similarity, allowed, common) = self.options, self._views(server, cohort)
        sizes = torch.tensor([float(group.size) for group in self.setting.layout.groups])
        for k, client in enumerate(cohort):
            if not self._judges(cohort)[k]:
                continue
            own, logits = slice(k, k + 1), server["meta"][client]
            attention = self._network({"meta": logits}).attention(similarity[:, own], allowed[own])
            alone = torch.ones(1)
            found = meta.lesson(attention, similarity[:, own], common[own], inner[:, own], alone, o.tau)
            found = replace(found, noise=torch.zeros_like(found.noise))
            meta.learn(logits, found, sizes, o.evidence_lr, o.gate_lr, o.price)

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


class Lengths(AMN):
    """The part of the held-out gradient that only scales a layer is left in it."""

    def _across(self, gradient: torch.Tensor, model: torch.Tensor, room: torch.Tensor) -> None:
        pass
