"""pFedHN: Shamsian, Navon, Fetaya, Chechik, "Personalized Federated Learning using Hypernetworks",
ICML 2021, algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amn_mpi import rng
from amn_mpi.config import key
from amn_mpi.errors import ConfigError
from amn_mpi.methods.base import Arrived, Client, Method, Reply, Setting, State, Update, Wire

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine


@dataclass(frozen=True)
class Options:
    """Defaults are those of the authors' code, but for the server's step: 0.01 there, where each step
    is of one client and not of a whole cohort."""

    name: str = key("pfedhn", "method")
    embedding: int = key(0, "numbers that describe a client; 0: 1 + clients / 4", ge=0, lt=2**20)
    hidden: int = key(100, "units of the hypernetwork's hidden layers", ge=1, lt=2**20)
    layers: int = key(3, "hidden layers after the first", ge=0, le=64)
    server_lr: float = key(0.1, "step size of the hypernetwork", gt=0)
    server_momentum: float = key(0.9, "its momentum", ge=0, lt=1)
    server_decay: float = key(0.001, "its weight decay", ge=0)
    clip: float = key(50.0, "largest norm of its gradient; 0: any", ge=0)


FIT_STEPS, FIT_LR = 100, 0.05  # of a newcomer's embedding


class PFedHN(Method):
    """A network h on the server makes every client's model: theta_i = h(v_i; phi).

    Client i trains theta_i to theta~_i. The server's gradient by (phi, v_i) is J^T (theta_i -
    theta~_i), the chain rule on the client's model difference, and it takes a step of SGD with
    momentum. The paper lets one client a step train; here the cohort trains at the same time and
    the server takes one step a round, on the mean of its gradients. (A step for each of 32 clients
    in turn, on differences that all began at the same network, overshoots and diverges. The paper's
    schedule is ``cohort`` 1 / clients, rounds times clients, and its server step of 0.01.)
    Clients train as configured (the authors: 50 steps, momentum 0.9, clipped gradients). Evaluated:
    the models that the network makes, without local training, as in the paper.
    """

    Options: ClassVar[Any] = Options
    wire = Wire(down="rows", up="rows", renewed=True, kinds=("parameter differences",))
    models: ClassVar[tuple[str, ...]] = ("generated",)
    newcomer_models: ClassVar[tuple[str, ...]] = ("generated", "finetuned")

    def __init__(self, options: Any, setting: Setting) -> None:
        super().__init__(options, setting)
        self._tools: Any = None
        if setting.layout.normalised:
            raise ConfigError(
                "method.name = pfedhn: a hypernetwork cannot make running statistics; choose a "
                "model.name without batch normalisation"
            )

    def init(self, initial: torch.Tensor) -> State:
        return {"network": self._network()[1].clone(), "momentum": 0 * self._network()[1]}

    def personalise(self, server: State, round: int, cohort: np.ndarray, out: torch.Tensor) -> None:
        import torch

        network, _, _ = self._network(server)
        with torch.no_grad():
            out[:, 0] = network(torch.from_numpy(cohort))

    def aggregate(self, server: State, round: int, cohort: np.ndarray, arrived: Arrived) -> dict[str, Any]:
        import torch

        network, parameters, gradient = self._network(server)
        gradient.zero_()
        network(torch.from_numpy(cohort)).backward(arrived.rows[:, 0] / -len(cohort))
        self._step(parameters, gradient, server["momentum"])
        server["network"].copy_(parameters)
        return {}

    def welcome(self, server: State, initial: torch.Tensor) -> torch.Tensor:
        """The model of the mean embedding."""
        import torch

        network, _, _ = self._network(server)
        with torch.no_grad():
            return network.made(network.embeddings.weight.mean(0))

    def receive(self, server: State, models: torch.Tensor) -> Reply:
        """Embeddings fitted to the newcomers' models, the network as it is (section 5.4 of the paper).

        Steps of Adam, from the mean embedding, on ||h(v) - theta~||^2 / 2, whose gradient J^T (h(v) -
        theta~) is that of training; all of them on the server, after one message.
        """
        import torch

        from amn_mpi import hypernetwork

        network, _, _ = self._network(server)
        own = network.embeddings.weight.detach().mean(0).repeat(len(models), 1).requires_grad_()
        moments = torch.zeros(2, *own.shape)
        for step in range(1, FIT_STEPS + 1):
            made = network.made(own)
            (slope,) = torch.autograd.grad(made, own, made.detach() - models)
            hypernetwork.adam(own.data, slope, moments, step, FIT_LR)
        with torch.no_grad():
            return Reply(network.made(own))

    def settle(
        self, answer: torch.Tensor, trained: Callable[..., torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "generated", answer
        yield "finetuned", trained()

    def _step(self, parameters: torch.Tensor, gradient: torch.Tensor, momentum: torch.Tensor) -> None:
        o = self.options
        if o.clip:
            gradient.mul_(min(1.0, o.clip / max(float(gradient.norm()), 1e-30)))
        gradient.add_(parameters, alpha=o.server_decay)
        momentum.mul_(o.server_momentum).add_(gradient)
        parameters.sub_(momentum, alpha=o.server_lr)

    def _network(self, server: State | None = None) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """(network, its parameters as one vector, their gradient), set to the server's state."""
        import torch

        from amn_mpi.hypernetwork import HyperNetwork
        from amn_mpi.params import ParameterLayout, bind

        if self._tools is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(rng.torch_seed(self.setting.seed, "hypernetwork"))
                network = HyperNetwork(*self._shape(), self.setting.layout.size)
            self._tools = (network, *bind(network, ParameterLayout.of(network)))
        if server is not None:
            self._tools[1].copy_(server["network"])
        return self._tools

    def _shape(self) -> tuple[int, int, int, int]:
        clients, o = self.setting.clients, self.options
        return clients, o.embedding or 1 + clients // 4, o.hidden, o.layers

    def server_rows(self, cohort: int) -> float:
        """Network and momentum, the network at work, its gradient and the head's before it is added;
        the cohort's models and what is fed back.
        """
        (clients, width, hidden, layers), size = self._shape(), self.setting.layout.size
        body = clients * width + (width + 1) * hidden + layers * (hidden + 1) * hidden
        return 2 * max(cohort, clients) + 5 * (hidden + 1 + body / size)

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        theta, order = received[0], client.generator("shuffle")
        client.up[0] = engine.train(theta, client.x, client.y, order)
        client.up[0] -= theta
        return Update()

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "generated", received[0]
