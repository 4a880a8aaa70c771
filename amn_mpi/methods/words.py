"""The words of the seam: what a method tells the runtime, and what it is handed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_type_hints

import numpy as np

if TYPE_CHECKING:
    import torch

    from amn_mpi import config
    from amn_mpi.params import ParameterLayout

State = dict[str, Any]  # name -> torch tensor: all that a method keeps, so one checkpoint fits all


@dataclass(frozen=True)
class Wire:
    """What a method moves in a round.

    Attributes:
        down: nothing, the same for all (broadcast), or something for each client of the cohort.
        up: nothing, only the weighted mean over the cohort (summed in fixed point, so independent
            of the ranks), or what every client returns.
        received, returned: vectors that a client gets and gives, each of S floats; see ``Method.returned``.
        weights: of the mean: by training samples, or all clients of the cohort alike.
        figures: names of single numbers that a client returns.
        renewed: a client's models for evaluation are made of what the server would send next;
            always so for a broadcast.
        kinds: what each of the returned vectors is, in a word or two: results tell by these how many
            bytes of what left a client's rank. Samples, and what is as good as them, must never be sent.
        figure_kind, feature_kind: the same for the figures, and for the features.

    Raises:
        ValueError: an unknown way, or not one kind for each returned vector.
    """

    down: Literal["none", "broadcast", "rows"]
    up: Literal["none", "mean", "rows"]
    received: int = 1
    returned: int = 1
    weights: Literal["samples", "equal"] = "samples"
    figures: tuple[str, ...] = ()
    renewed: bool = False
    kinds: tuple[str, ...] = ("parameters",)
    figure_kind: str = "figures"
    feature_kind: str = "features"

    def __post_init__(self) -> None:
        for name in ("down", "up", "weights"):
            valid = get_args(get_type_hints(Wire)[name])
            if getattr(self, name) not in valid:
                told = ", ".join(valid)
                raise ValueError(f"Wire({name}={getattr(self, name)!r}): valid is one of {told}")
        if len(self.kinds) != max(1, self.returned):
            raise ValueError(
                f"Wire(returned={self.returned}, kinds={self.kinds}): {len(self.kinds)} kinds; valid is "
                "one for each returned vector"
            )


@dataclass(frozen=True)
class Setting:
    """What every method may know beforehand.

    Attributes:
        samples: training samples of each client, (N,).
        draw: ``draw(k)`` is the k-th random initial model, (P,); number 0 is everybody's start.
        classes: how many scores a model gives; 0 where nothing is to be trained.
    """

    layout: ParameterLayout
    samples: np.ndarray
    seed: int
    local: config.Local
    draw: Callable[[int], torch.Tensor] | None = None
    classes: int = 0

    @property
    def clients(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
class Client:
    """One client of this rank in one round.

    Attributes:
        x, y: its training samples, in an order that is random but fixed for the run.
        state: what it keeps, by name (read-only).
        up: (returned, S), as many as in this round: fill it with what the client returns; it holds
            anything at first.
        generator: ``generator(purpose)`` draws anew for this round and client; the order of
            plain local training is the purpose "shuffle", so that methods can be compared bit by bit.
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

    ``features`` are the ``Method.features`` numbers to return, of any shape and on any device.
    State vectors and features may be views of what was received and, for ``up = "rows"``, of
    ``client.up``; never of the engine's workspace or of the slot of a mean, which the next client uses.
    State is copied when the round is committed. The runtime fills in ``seconds``, the turn's wall time
    (of turns taken together: its part, by steps), and ``trouble``, the number of what is wrong with it.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    features: torch.Tensor | None = None
    seconds: float = 0.0
    trouble: int = 0


class Pull(NamedTuple):
    """A proximal term strength / 2 * ||w - anchor||^2 beside the loss; ``anchor``, (P,), is a constant."""

    anchor: torch.Tensor
    strength: float


@dataclass
class Arrived:
    """What came back, on rank 0, in cohort order; what was not asked for is empty.

    Clients whose training left the numbers are not among it: the method sees a smaller cohort.

    Attributes:
        cohort: the clients that it is from.
        rows: (clients, returned, S) for ``up = "rows"``; ``returned`` as in the round.
        mean: (returned, S) for ``up = "mean"``.
        figures: name -> (clients,) float64.
        features: (clients, ``Method.features``) float32.
        seconds: (clients,) wall time of each turn; turns taken together share theirs out by steps.
        dropped: client -> what was wrong with what it returned.
        trouble: a sentence where the run cannot go on, else empty.
        cut: a stop has cut turns off: the round does not count.
        sent: for ``down = "rows"``, made on rank 0, what went down to the whole cohort, (n, received, S).
        good: which of these n ``cohort`` has, (n,) bool.
    """

    cohort: np.ndarray
    rows: torch.Tensor
    mean: torch.Tensor
    figures: Mapping[str, np.ndarray]
    features: torch.Tensor
    seconds: np.ndarray
    dropped: Mapping[int, str] = field(default_factory=dict)
    trouble: str = ""
    cut: bool = False
    sent: torch.Tensor | None = None
    good: np.ndarray | None = None


class Reply(NamedTuple):
    """What a method answers newcomers, in their order: models, (n, P), and attention, (layers, n, N)."""

    models: torch.Tensor
    attention: np.ndarray | None = None
