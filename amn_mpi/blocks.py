"""The columns of many models in fixed blocks: what is computed over a block, and how they lie.

The operands of a product are contiguous arrays of a block alone, and sums over blocks are added in
the order of the blocks, so every number rounds the same wherever a block lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amn_mpi.params import Group

if TYPE_CHECKING:
    import torch

# Wide enough for fast products. Narrow enough that what a rank holds beside its own blocks is
# little, and that the rows of 65,000 clients count less than 2^31 numbers in a message.
BLOCK = 8192


@dataclass(frozen=True)
class Block:
    """Columns ``start .. stop - 1`` of the flat vector, all of one layer group."""

    layer: int
    start: int
    stop: int

    @property
    def columns(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def size(self) -> int:
        return self.stop - self.start


def cut(groups: Iterable[Group]) -> tuple[Block, ...]:
    """All columns of the layer groups in blocks of at most BLOCK."""
    return tuple(
        Block(layer, start, min(start + BLOCK, group.stop))
        for layer, group in enumerate(groups)
        for start in range(group.start, group.stop, BLOCK)
    )


class Stack:
    """All clients' models in one flat tensor, one block of all of them after another.

    So a block is a contiguous array, at a multiple of 64 bytes, that no product has to copy first.
    """

    def __init__(self, every: Iterable[Block], clients: int) -> None:
        self.clients, self._starts, self.size = clients, dict[Block, int](), 0
        for block in every:
            self._starts[block] = self.size
            self.size += -(-clients * block.size // 16) * 16

    def __call__(self, flat: torch.Tensor, block: Block) -> torch.Tensor:
        """The view (clients, width)."""
        start = self._starts[block]
        return flat[start : start + self.clients * block.size].view(self.clients, block.size)

    def put(self, flat: torch.Tensor, client: int, model: torch.Tensor) -> None:
        for block in self._starts:
            self(flat, block)[client] = model[block.columns]

    def rows(self, flat: torch.Tensor) -> torch.Tensor:
        """A copy with a model in each row, (clients, P)."""
        import torch

        return torch.cat([self(flat, block) for block in self._starts], 1)


def mix(
    weights: torch.Tensor, models: torch.Tensor, block: Block, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Hybrids of a block: (L, n, N), or (1, n, N) for all layers alike, and (N, width) -> (n, width)."""
    import torch

    return torch.mm(weights[min(block.layer, len(weights) - 1)], models, out=out)


class Scratch:
    """Arrays by name that serve one block after another: of freed ones this large glibc keeps several."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        """Contiguous, with anything in it; the same memory as under this name before."""
        import torch

        numbers = math.prod(shape)
        if name not in self._held or len(self._held[name]) < numbers:
            self._held[name] = torch.empty(numbers)
        return self._held[name][:numbers].view(shape)
