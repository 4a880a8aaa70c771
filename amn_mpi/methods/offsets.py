"""A client's class frequencies on the biases of its scores: added to what comes, taken off what goes.

After Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 5: what is learnt below them
is what the labels do not explain.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from amn_mpi.config import key
from amn_mpi.methods.base import Method

if TYPE_CHECKING:
    import torch


def prior_key(default: float) -> Any:
    """The option that scales them."""
    told = "of a client's log class frequencies on the biases of its scores; 0: none"
    return key(default, told, ge=0, le=10)


class ClassOffsets(Method):
    """A method whose clients train and use models with an offset of their own, and send them without it.

    The offset is ``method.prior`` times the client's centred log class frequencies. There is none where the
    options have no such key, or the model has no bias for each score; a model is then handed on uncopied.
    """

    @property
    def prior(self) -> float:
        return getattr(self.options, "prior", 0.0)

    def to_client(self, model: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.shifted(model, self.offset(y))

    def from_client(self, model: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.shifted(model, -self.offset(y))

    def offset(self, y: torch.Tensor) -> torch.Tensor:
        """That of a client with labels ``y``, (C,); each class counts one more. Empty where there is none."""
        import torch

        if not (self.prior and self._fits):
            return torch.zeros(0, device=y.device)
        counts = torch.bincount(y, minlength=self.setting.classes).float() + 1
        logs = (counts / counts.sum()).log()
        return self.prior * (logs - logs.mean())

    def shifted(
        self, model: torch.Tensor, offset: torch.Tensor, room: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``model`` with ``offset`` on the biases of its scores, (P,); itself where the offset is empty.

        Args:
            room: (P,), is overwritten and returned, may be ``model``; None: a new vector.
        """
        if not len(offset):
            return model
        found = model.clone() if room is None else room.copy_(model)
        found[self.setting.layout.score_biases] += offset.to(found.device)  # with a GPU, labels are there
        return found

    @cached_property
    def _fits(self) -> bool:
        biases = self.setting.layout.score_biases
        return biases is not None and biases.stop - biases.start == self.setting.classes
