"""Methods whose server mixes the newest models of all clients, wherever these models are.

Such a server never looks at a whole model. It needs sums over columns (inner products), chooses
weights, and hybrids are sums of rows. So the models may lie on rank 0, or in blocks of columns over
all ranks (``amn_mpi/shards.py``); both ways the same code runs on the same blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi import blocks
from amn_mpi.blocks import Block, Scratch, Stack
from amn_mpi.errors import ConfigError
from amn_mpi.methods.base import Arrived, Method, Setting, State

if TYPE_CHECKING:
    import torch

    from amn_mpi.config import Config


@dataclass(frozen=True)
class Columns:
    """A block of columns in one round. ``take_over`` writes into ``stacks``; all else is read-only.

    Attributes:
        reference: everybody's start, (width,), for methods with ``from_start``, else empty.
        stacks: every client's newest before the round, each (N, width), in the order of ``Method.mirrors``:
            the models first.
        rows: what the cohort returned, (n, returned, width). How they lie in memory depends on the
            server: copy those that go into a product (``own_array``).
        sent: where ``Mixing.recalls``, what the cohort had received, each (n, width), in the order of
            ``stacks``.
    """

    block: Block
    reference: torch.Tensor
    stacks: tuple[torch.Tensor, ...]
    rows: torch.Tensor
    sent: tuple[torch.Tensor, ...] = ()

    @property
    def models(self) -> torch.Tensor:
        """Every client's newest model before the round, (N, width)."""
        return self.stacks[0]


class Mixing(Method):
    """u_i^l = sum_j weight_ij^l theta_j^l goes down to client i; its new theta_i comes back first.

    Where ``mirrors`` has more than the models, that is mixed by the same weights and goes down behind them,
    each as a vector of its own, and comes back in the same order, unless ``take_over`` says otherwise.

    Attributes:
        recalls: a block's server needs once more what it sent (``Columns.sent``).
        mirror_kinds: what each of ``mirrors`` is, as in ``Wire.kinds``, where a client's rank sends it.
        blocks: all columns, in the order in which ``measure`` is summed.
        from_start: ``measure`` needs everybody's start; it is the server state "reference".
    """

    mirrors: Mapping[str, str] = {"models": "model"}
    recalls: bool = False
    from_start: ClassVar[bool] = False

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        self.blocks = blocks.cut(setting.layout.groups)
        self.stack = Stack(self.blocks, setting.clients)
        self._scratch = Scratch()

    # ---- rank 0

    @property
    def mirror_kinds(self) -> tuple[str, ...]:
        return self.wire.kinds[: len(self.mirrors)]

    @property
    def matrices(self) -> int:
        """How many matrices of weights there are: one a layer, or one for all."""
        return len(self.setting.layout.groups)

    @abstractmethod
    def mixing(self, server: State, round: int, cohort: np.ndarray) -> torch.Tensor:
        """The weights of all clients' models for the cohort, (matrices, n, N); rows sum to 1."""

    @abstractmethod
    def learn(self, server: State, round: int, arrived: Arrived, measured: torch.Tensor) -> dict[str, Any]:
        """Change the server state by what was measured, (L, n, numbers) float64; returns figures."""

    # ---- wherever a block is

    @abstractmethod
    def numbers(self, round: int) -> int:
        """How many numbers ``measure`` gives for each client; in rounds with 0 it is not called."""

    @property
    def most_numbers(self) -> int:
        """The most of them in any round; here all rounds are alike."""
        return self.numbers(1)

    @abstractmethod
    def measure(self, round: int, cohort: np.ndarray, columns: Columns) -> torch.Tensor:
        """(n, numbers) of one block; the server gets its sum over the blocks of each layer."""

    def take_over(self, cohort: np.ndarray, columns: Columns, figures: Mapping[str, np.ndarray]) -> None:
        """What the cohort returned, and its figures, (n,), into a block's ``stacks``; after ``measure``."""
        for k, stack in enumerate(columns.stacks):
            self._put(cohort, stack, columns.rows[:, k])

    def _put(self, cohort: np.ndarray, stack: torch.Tensor, rows: torch.Tensor) -> None:
        if len(cohort) == len(stack):
            stack.copy_(rows)  # half the time of the general way
        else:
            stack[cohort] = rows

    # ---- all of it on rank 0

    def weights_down(self, server: State, round: int, cohort: np.ndarray) -> torch.Tensor:
        """``mixing`` in the one layout in memory for which products round the same everywhere."""
        return self.mixing(server, round, cohort).float().contiguous()

    def mirror(self, server: State, name: str, client: int, own: torch.Tensor) -> None:
        from amn_mpi.heap import zeros

        if name not in server:
            server[name] = zeros(self.stack.size)
        self.stack.put(server[name], client, own)

    def personalise(self, server: State, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        weights = self.weights_down(server, round, cohort)
        for block in self.blocks:
            for k, stack in enumerate(self._stacks(server, block)):
                blocks.mix(weights, stack, block, out=out[:, k, block.columns])

    def _stacks(self, server: State, block: Block) -> tuple[torch.Tensor, ...]:
        """What is mixed, in a block."""
        return tuple(self.stack(server[name], block) for name in self.mirrors)

    def mixed(self, server: State, weights: torch.Tensor) -> torch.Tensor:
        """Sums of all clients' newest models by weights (matrices, n, N): (n, P)."""
        import torch

        out = torch.empty(weights.shape[1], self.setting.layout.size)
        for block in self.blocks:
            blocks.mix(weights, self.stack(server["models"], block), block, out=out[:, block.columns])
        return out

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        measured = self.nothing_measured(round, len(cohort))
        for block in self.blocks:
            stacks, rows = self._stacks(server, block), arrived.rows[:, :, block.columns]
            sent = self._sent(arrived, block)
            columns = Columns(block, self._reference(server, block), stacks, rows, sent)
            if self.numbers(round):
                measured[block.layer] += self.measure(round, cohort, columns)
            self.take_over(cohort, columns, arrived.figures)
        return self.learn(server, round, arrived, measured)

    def _sent(self, arrived: Arrived, block: Block) -> tuple[torch.Tensor, ...]:
        """What went down to those of whom something came back, in a block."""
        if not self.recalls or arrived.sent is None or arrived.good is None:
            return ()
        sent = arrived.sent[:, : len(self.mirrors), block.columns]
        return (sent if arrived.good.all() else sent[arrived.good]).unbind(1)

    def _reference(self, server: State, block: Block) -> torch.Tensor:
        """Everybody's start in a block, where it is needed."""
        import torch

        if not self.from_start:
            return torch.empty(0)
        return self.own_array("reference", server["reference"][block.columns])

    def own_array(self, name: str, piece: torch.Tensor) -> torch.Tensor:
        """A copy as an array of a block alone: products of other arrays may round differently.

        It lasts until the next one of that name.
        """
        return self._scratch(name, *piece.shape).copy_(piece)

    def nothing_measured(self, round: int, clients: int) -> torch.Tensor:
        """Where the sums over blocks start, (L, n, numbers)."""
        import torch

        layers = len(self.setting.layout.groups)
        return torch.zeros(layers, clients, self.numbers(round), dtype=torch.float64)

    # ---- what it costs

    @abstractmethod
    def small_floats(self, cohort: int) -> float:
        """Floats of the server's state and steps that do not grow with P."""

    def block_floats(self, cohort: int) -> float:
        """Floats that a block takes beside its models and rows: one of the rows, what is measured."""
        return cohort * self.widest + 2 * cohort * self.most_numbers

    def apart_rows(self, cohort: int) -> float:
        """``server_rows`` of a server whose models lie with the other ranks: sums, a reference."""
        summed = 3 * len(self.setting.layout.groups) * cohort * self.most_numbers  # in float64, then as used
        return self.from_start + (self.small_floats(cohort) + summed) / self.setting.layout.size

    def server_rows(self, cohort: int) -> float:
        held = len(self.mirrors) * self.stack.size + self.block_floats(cohort)
        return held / self.setting.layout.size + self.apart_rows(cohort)

    @property
    def widest(self) -> int:
        return max(block.size for block in self.blocks)


def sharded(config: Config, method: Method) -> bool:
    """Whether the models lie in columns over the ranks, as ``config.server`` asks for.

    Raises:
        ConfigError: the method's server needs whole models.
    """
    able = isinstance(method, Mixing)
    if config.server == "sharded" and not able:
        raise ConfigError(
            f"server = sharded: method.name = {method.options.name} needs whole models on rank 0; valid is "
            "rank0 or auto, or a method that only mixes them (amn, fedamp, heur_fedamp)"
        )
    models = 4 * method.setting.clients * method.setting.layout.size * len(method.mirrors)
    return able and (
        config.server == "sharded" or (config.server == "auto" and models > config.server_gb * 2**30)
    )
