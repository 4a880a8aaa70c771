"""AMN told the true groups, for ``configs/compare/oracle_*.yaml``: what finding them could bring at most.

    mpirun -n 3 python -m amn_mpi.compare oracle_fashion_mnist

A client attends to all others of its concept group alike and to nobody else. Gates are AMN's own, or the
fixed ones of ``method.gate`` with ``method.gate_lr`` 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi.config import Data, key
from amn_mpi.data import concept
from amn_mpi.methods import amn
from amn_mpi.methods.base import State

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Options(amn.Options):
    groups: int = key(4, "how many hidden groups there are, data.concept_groups", ge=1)


class ToldGroups(amn.AMN):
    """AMN whose attention is the true groups."""

    Options: ClassVar[Any] = Options

    @cached_property
    def _true_groups(self) -> np.ndarray:
        """(N,), of ``data.concept_groups`` and the seed alone."""
        told = Data(clients=self.setting.clients, concept="permute", concept_groups=self.options.groups)
        return concept.assign_groups(told, self.setting.seed)

    def _views(self, server: State, cohort: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        similarity, allowed, common = super()._views(server, cohort)
        same = self._true_groups[cohort, None] == self._true_groups
        return torch.zeros_like(similarity), allowed & torch.from_numpy(same), common
