"""The seam of a method: what it decides, and what the runtime does for it.

A method is its paper's update rule. It never sees ranks, never loops over clients, never touches
a file. The runtime draws the cohort, moves vectors, keeps state by name, evaluates.

Vectors are float32 torch tensors of shape (P,), matrices have one row per client. Tensors handed
in are the runtime's buffers: read them, or fill those documented as outputs, and keep no
reference to them beyond the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

    from amn_mpi import config
    from amn_mpi.local import Engine
    from amn_mpi.params import ParameterLayout

State = dict[str, Any]  # name -> torch tensor: all that a method keeps, so one checkpoint fits all


@dataclass(frozen=True)
class Wire:
    """What a method moves in a round and what it keeps.

    Attributes:
        down: nothing, one vector for all (broadcast), or a row for each client of the cohort.
        up: nothing, only the weighted mean over the cohort (weights: training samples; summed in
            fixed point, so independent of the ranks), or every client's rows.
        vectors: vectors of P floats that a client returns.
        figures: names of single numbers that a client returns.
        state: names of the vectors that stay with each client from round to round; all start as
            the initial model.
        fresh: how many of them a local update allocates anew instead of pointing into what was
            received or is sent.
    """

    down: Literal["none", "broadcast", "rows"]
    up: Literal["none", "mean", "rows"]
    vectors: int = 1
    figures: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    fresh: int = 0

    def worker_rows(self) -> tuple[int, int]:
        """(c, s): an owner of k clients holds (c + s x k) x P floats beside its data.

        c: workspace, its gradient, the initial model, one scratch vector (a layer's gradient
        before it is added, or a method's blend), and what a broadcast and a mean take.
        s: rows received, rows to return, state. SGD with momentum takes one vector more.
        """
        c = 4 + (self.down == "broadcast")
        if self.up == "mean":
            # The slot; in 64 bits the sum, and what MPI adds a neighbour's to.
            c += 5 * self.vectors
        s = (self.down == "rows") + self.vectors * (self.up == "rows") + len(self.state)
        return c, s + self.fresh


@dataclass(frozen=True)
class Setting:
    """What every method may know beforehand; ``samples`` are training samples, shape (N,)."""

    layout: ParameterLayout
    samples: np.ndarray
    seed: int
    local: config.Local

    @property
    def clients(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Client:
    """One client of this rank in one round.

    Attributes:
        x, y: its training samples, in an order that is random but fixed for the run.
        state: its vectors by name (read-only).
        up: (vectors, P): fill it with what the client returns.
        generator: ``generator(purpose)`` draws anew for this round and client.
    """

    number: int
    round: int
    x: torch.Tensor
    y: torch.Tensor
    state: Mapping[str, torch.Tensor]
    up: torch.Tensor
    generator: Callable[[str], np.random.Generator]


@dataclass(frozen=True)
class Update:
    """What a client's turn leaves: single numbers to return, and its new state by name.

    State vectors may be views of ``client.up`` or of what was received: they are copied when the
    round is committed. ``seconds`` is the turn's wall time, filled in by the runtime.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Arrived:
    """What the cohort returned, on rank 0, in cohort order; what was not asked for is empty.

    Attributes:
        rows: (clients of the cohort, vectors, P) for ``up = "rows"``.
        mean: (vectors, P) for ``up = "mean"``.
        figures: name -> (clients of the cohort,) float64.
        seconds: (clients of the cohort,) wall time of each turn.
    """

    rows: torch.Tensor
    mean: torch.Tensor
    figures: Mapping[str, np.ndarray]
    seconds: np.ndarray


class Method:
    """Base of all methods; see the module's text.

    Attributes:
        Options: frozen dataclass of the method's keys, ``name`` first.
        models: names of the models that are evaluated.
    """

    Options: ClassVar[Any]
    wire: ClassVar[Wire]
    models: ClassVar[tuple[str, ...]] = ("local",)

    def __init__(self, options: Any, setting: Setting) -> None:
        self.options, self.setting = options, setting

    @property
    def headline(self) -> str:
        """Which of ``models`` counts as the client's own."""
        return self.models[0]

    def server_rows(self, cohort: int) -> float:
        """Vectors of P floats that rank 0 needs for its state and its steps on ``cohort`` clients.

        The exchange's buffers are not among them.
        """
        return 1.0

    # ---- rank 0

    def init(self, initial: torch.Tensor) -> State:
        """Server state by name from the initial model, shape (P,)."""
        return {"model": initial.clone()}

    def personalise(self, server: State, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        """Fill what goes down: ``out`` is (1, P) for a broadcast, else (len(cohort), P)."""
        out[0] = server["model"]

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        """Change the server state by what arrived; returns figures for the metrics."""
        return {}

    def deploy(self, server: State) -> dict[str, float]:
        """Numbers that every client needs to form its models for evaluation."""
        return {}

    def attention(self, server: State) -> np.ndarray | None:
        """Who listens to whom, (layers, N, N), for methods that have such weights."""
        return None

    # ---- the client's rank

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        """The client's turn; ``received`` is (P,), and empty where nothing goes down."""
        raise TypeError(f"{type(self).__name__} has no local update")

    def deployed(
        self, client: Client, received: torch.Tensor, numbers: Mapping[str, float], engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The client's models as (name, vector), in the order of ``models``.

        ``received`` is the newest broadcast, and empty for methods without one. A vector may be
        the engine's workspace.
        """
        yield "local", client.state["model"]
