"""FedPer: Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers",
arXiv:1912.00818, algorithms 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from amn_mpi.config import key
from amn_mpi.methods.partial import PartlyShared, last_layers


@dataclass(frozen=True)
class Options:
    """The paper tries one to four personal blocks; the last layer is the usual choice."""

    name: str = key("fedper", "method")
    head: int = key(1, "how many of the last layers (norms count) stay with the client", ge=0)


class FedPer(PartlyShared):
    """The body is averaged by samples, the head stays; both are trained together by SGD."""

    Options: ClassVar[Any] = Options

    def private_layers(self) -> Sequence[str]:
        return last_layers(self.setting, self.options.head)
