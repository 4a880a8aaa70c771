"""The seam of a method: what it decides, and what the runtime does for it.

A method is its paper's update rule. It never sees ranks, never loops over clients, never touches
a file. The runtime draws the cohort, moves vectors, keeps state by name, evaluates.

A model is a float32 torch tensor of shape (P,). What travels has shape (S,): the whole model, or
the ``part`` of it that the method shares. Tensors handed in are the runtime's buffers: read them,
or fill those documented as outputs, and keep no reference to them beyond the call.

A client sends vectors, single numbers by name (``figures``), and ``features``: a row of float32 numbers,
short beside P, made of its model where that is, so that rank 0 need not go through every model.

Building blocks: ``config.key`` for options, ``Engine.train`` (its result is the workspace: copy it),
``loss``, ``gradient``, ``batches``, ``slope`` and ``solve``; ``mixing.Mixing`` for a server that mixes
rows of models; ``held_out`` and ``shares`` below. torch is imported inside functions: the command line
reads the options of methods without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi.errors import ConfigError
from amn_mpi.methods.words import Arrived, Client, Pull, Reply, Setting, State, Update, Wire

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine

__all__ = [
    "Arrived",
    "Client",
    "Method",
    "Pull",
    "Reply",
    "Setting",
    "State",
    "Update",
    "Wire",
    "held_out",
    "shares",
]


class Method:
    """Base of all methods; see the module's text.

    Attributes:
        Options: frozen dataclass of the method's keys, ``name`` first.
        wire: what it moves.
        models: names of the models that are evaluated.
        part: the coordinates that travel: the whole model unless ``__init__`` says otherwise.
        aside: why comparisons list it apart from the others, "" if they do not; by options: ``apart``.
        mirrors: server state that holds what the clients have as their own state of another name:
            {"models": "model"}. The runtime fills it by ``mirror``, and no checkpoint has it twice.
        plain_sgd: it takes steps of its own, for which SGD's momentum is not defined.
        fresh, scratch: vectors of P floats that a turn allocates: for each client until the round
            ends (new state that does not point into what was received or is sent), and until the
            turn ends.
        kept: as many that a rank keeps for all its clients.
        newcomer_models: names of the models of ``settle``; the last is the one a newcomer uses.
    """

    Options: ClassVar[Any]
    wire: Wire
    models: ClassVar[tuple[str, ...]] = ("local",)
    aside: ClassVar[str] = ""
    mirrors: Mapping[str, str] = {}
    plain_sgd: ClassVar[bool] = False
    fresh: float = 0.0
    scratch: float = 0.0
    kept: float = 0.0
    newcomer_models: ClassVar[tuple[str, ...]] = ("finetuned",)

    def __init__(self, options: Any, setting: Setting) -> None:
        self.options, self.setting = options, setting
        self.part = setting.layout.whole
        if self.plain_sgd and setting.local.momentum:
            raise ConfigError(
                f"local.momentum = {setting.local.momentum}: method.name = {options.name} takes "
                "steps without momentum; valid is 0"
            )

    def check_pull(self, strength: float, lr: float, words: str) -> None:
        """Refuse a step that overshoots a proximal term's minimum by more than it was away from it.

        Raises:
            ConfigError: lr x strength is 2 or more; ``words`` name the keys.
        """
        if lr * strength >= 2:
            raise ConfigError(f"{words} = {lr * strength:g}: diverges on any data; valid is less than 2")

    @property
    def headline(self) -> str:
        """Which of ``models`` counts as the client's own."""
        return self.models[0]

    @property
    def features(self) -> int:
        """How many numbers a client returns beside its vectors and figures."""
        return 0

    def returned(self, round: int) -> int:
        """How many of ``wire.returned`` vectors, the first ones, a client gives in a round.

        Fewer than all: for ``up = "rows"`` alone.
        """
        return self.wire.returned

    @classmethod
    def apart(cls, options: Mapping[str, Any]) -> str:
        """Why comparisons list a run with these options apart from the others, "" if they do not."""
        return cls.aside

    # ---- rank 0

    def init(self, initial: torch.Tensor) -> State:
        """Server state by name from the initial model, shape (P,)."""
        return {"model": self.part.take(initial).clone()}

    def mirror(self, server: State, name: str, client: int, own: torch.Tensor) -> None:
        """Put a client's own state where ``mirrors`` has it."""
        raise TypeError(f"{type(self).__name__} mirrors nothing")

    def personalise(self, server: State, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        """Fill what goes down: ``out`` is (1, received, S) for a broadcast, else (n, received, S)."""
        out[0, 0] = server["model"]

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        """Change the server state by what arrived; returns figures for the metrics (JSON values)."""
        return {}

    def attention(self, server: State) -> np.ndarray | None:
        """Who listens to whom, (layers, N, N), for methods that have such weights."""
        return None

    # ---- clients that come when the training is over

    def to_client(self, model: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What a client with labels ``y`` makes of a model from the server, (P,); not in place."""
        return model

    def from_client(self, model: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The way back: what it sends of a model of its own; not in place."""
        return model

    def welcome(self, server: State, initial: torch.Tensor) -> torch.Tensor:
        """What a newcomer trains its first model from, (P,): one model that goes to all, where there is one.

        Raises:
            ConfigError: the method has nothing for clients that it never trained with.
        """
        import torch

        if self.wire.down != "broadcast" or self.wire.received != 1 or self.part != self.setting.layout.whole:
            raise ConfigError(
                f"method.name = {self.options.name} has no model for clients that it never trained with"
            )
        out = torch.empty(1, 1, self.setting.layout.size)
        self.personalise(server, 0, np.arange(self.setting.clients), out)
        return out[0, 0]

    def receive(self, server: State, models: torch.Tensor) -> Reply | None:
        """Answer newcomers' first models, (n, P); changes nothing. None: each goes on with its own."""
        return None

    def settle(
        self, answer: torch.Tensor, trained: Callable[..., torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """A newcomer's models by name, as ``newcomer_models`` has them, each (P,).

        Args:
            answer: the method's. trained: ``trained()`` is the newcomer's model after so many epochs more,
                ``trained(only=part)`` the answer of which that part alone was trained for as many. All are
                what goes between client and server: see ``to_client``.
        """
        yield "finetuned", trained()

    # ---- the client's rank

    def keeps(self, initial: torch.Tensor) -> State:
        """What a client keeps from round to round, by name, as it starts from (P,) ``initial``.

        Shapes are free; called with a tensor on the meta device to learn them.
        """
        return {}

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        """The client's turn; ``received`` is (received, S), read-only, and empty where nothing goes down."""
        raise TypeError(f"{type(self).__name__} has no local update")

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The client's models as (name, (P,) vector), in the order of ``models``.

        ``received`` is what the server would send next, (received, S), and empty for methods
        without a broadcast that are not ``renewed``. A vector may be the engine's workspace.
        """
        yield "local", client.state["model"]

    # ---- what it costs

    def server_rows(self, cohort: int) -> float:
        """Vectors of P floats that rank 0 needs for its state and its steps on ``cohort`` clients.

        The exchange's buffers are not among them.
        """
        return self.part.size / self.setting.layout.size

    def worker_rows(self) -> tuple[float, float]:
        """(c, s): an owner of k clients holds (c + s x k) x P floats beside its data.

        c: workspace, its gradient, the initial model, one scratch vector (a layer's gradient
        before it is added, or a model put together), the turn's own scratch, what is kept, and what a
        broadcast and a mean take. s: vectors received and to return, state and what is new of it until the
        round ends (``fresh``), and features, as they are made and to return. SGD with momentum takes one
        vector more.
        """
        import torch

        wire, size = self.wire, self.setting.layout.size
        share = self.part.size / size
        state = self.keeps(torch.empty(size, device="meta"))
        c = 4.0 + self.scratch + self.kept + (wire.down == "broadcast") * wire.received * share
        if wire.up == "mean":
            # The slot; in 64 bits the sum, and what MPI adds a neighbour's to.
            c += 5 * wire.returned * share
        s = (wire.down == "rows") * wire.received * share + (wire.up == "rows") * wire.returned * share
        numbers = sum(vector.numel() for vector in state.values()) + 2 * self.features
        return c, s + self.fresh + numbers / size


def held_out(samples: int, fraction: float) -> int:
    """How many of a client's first training samples it keeps from training: at least 2, at most half."""
    return max(min(2, samples // 2), min(samples // 2, round(fraction * samples)))


def shares(weights: np.ndarray) -> np.ndarray:
    """Rows of non-negative weights divided by their sums; a row of zeros stays one."""
    total = weights.sum(1, keepdims=True)
    return weights / np.where(total > 0, total, 1.0)
