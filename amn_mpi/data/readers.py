"""Which reader serves which ``data.name``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from amn_mpi.data import arrays, cifar, digits, folder, mnist
from amn_mpi.data.raw import Raw
from amn_mpi.errors import ConfigError

if TYPE_CHECKING:
    from amn_mpi.config import Data


@dataclass(frozen=True)
class Reader:
    """``locate`` finds the files, ``parse`` reads them.

    ``mean`` and ``std`` of all pixels, as shares of the full range, are the data set's published
    constants (training images; for digits of the whole set). With them a model sees inputs of
    mean 0 and variance 1, and nothing is computed from any client's samples. Without them, in
    the user's own files, pixels become -1..1 and floats stay as they are.
    """

    locate: Callable[[Data], dict[str, Path]]
    parse: Callable[[Data, dict[str, Path]], Raw]
    mean: float | None = None
    std: float = 1.0

    def read(self, data: Data, files: dict[str, Path]) -> Raw:
        raw = self.parse(data, files)
        if self.mean is None:
            return raw
        return replace(raw, scale=raw.scale / 2 / self.std, shift=-self.mean / self.std)


READERS = {
    "digits": Reader(digits.locate, digits.read, 0.3053, 0.3760),
    "mnist": Reader(mnist.locate, mnist.read, 0.1307, 0.3081),
    "fashion_mnist": Reader(mnist.locate, mnist.read, 0.2860, 0.3530),
    "emnist": Reader(mnist.locate, mnist.read, 0.1751, 0.3332),
    "cifar10": Reader(cifar.locate, cifar.read, 0.4734, 0.2516),
    "cifar100": Reader(cifar.locate, cifar.read, 0.4782, 0.2682),
}
NAMES = tuple(READERS)


def reader(data: Data) -> Reader:
    """Raises ``ConfigError`` for a name that is neither built in, nor a file of arrays, nor a folder."""
    if data.name.strip() and data.name not in READERS and Path(data.name).expanduser().is_dir():
        return Reader(folder.locate, folder.read)
    if data.name.endswith(arrays.SUFFIXES):
        return Reader(arrays.locate, arrays.read)
    if data.name not in READERS:
        raise ConfigError(
            f"data.name = {data.name}: valid are {', '.join(NAMES)}, a file "
            f"that ends in {', '.join(arrays.SUFFIXES)}, or a folder of clients' files that is there"
        )
    return READERS[data.name]
