"""AMN, the attention-enhanced meta-learning network: the method this project is about.

After Gao, Wang, Liu, Ma, Journal of Computer Research and Development 61(1), 2024, 196-208, doi
10.7544/issn1000-1239.202220922. The published description is: model parameters as features, a
meta-network that gives each client a meta-model which finds who resembles it, two layers that
trade personality against commonality, meta-model and local model trained in turn. The equations
here and in ``meta.py`` are this project's reading of that description; see README.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from amn_mpi import rng
from amn_mpi.config import key
from amn_mpi.methods.base import Arrived, Client, Reply, State, Update, Wire, held_out
from amn_mpi.methods.corrected import CorrectedSteps, drift_key
from amn_mpi.methods.mixing import Columns
from amn_mpi.methods.offsets import prior_key
from amn_mpi.methods.partial import last_layers
from amn_mpi.methods.softened import SoftenedGradients

if TYPE_CHECKING:
    import torch

    from amn_mpi.local import Engine
    from amn_mpi.meta import MetaNetwork, Sketch
    from amn_mpi.params import Part


@dataclass(frozen=True)
class Options:
    """Options of AMN."""

    name: str = key("amn", "method")
    tau: float = key(8.0, "sharpness of the attention", gt=0, le=1e6)
    sketch: int = key(512, "numbers a layer's parameters are sketched to", ge=1, le=2**20)
    gate: float = key(0.1, "share of the personal part at the start", gt=0, lt=1)
    evidence_lr: float = key(30.0, "step of the evidence, a nat of held-out loss; 0: stays", ge=0)
    gate_lr: float = key(0.5, "step of the gates, a round; 0: stay", ge=0)
    recall: float = key(0.8, "part of a client's remembered gains that a round leaves", ge=0, lt=1)
    price: float = key(
        0.3, "share of the gain that opens a layer, over its share of the parameters to the power 1.5", ge=0
    )
    common_rounds: int = key(5, "rounds of plain averaging first", ge=0)
    meta_rounds: int = key(30, "rounds after which the meta-network stays and all samples train", ge=0)
    held_out: float = key(0.125, "part of training samples for the meta step alone until then", gt=0, lt=1)
    soften: float = key(3.0, "temperature of the scores in the held-out loss", gt=0, le=100)
    fit: int = key(
        1, "epochs of the last layer on a client's samples before use; 0: the hybrid as it is", ge=0
    )
    prior: float = prior_key(1.0)
    drift: float = drift_key(0.8)
    report: Literal["local", "hybrid", "fitted"] = key("fitted", "which model is the client's own")


class AMN(SoftenedGradients, CorrectedSteps):
    """One round: hybrids go down, each client returns its model and, where the meta-network learns from it, a
    held-out gradient.

    That gradient is taken at the adapted local model and stands for the one at the hybrid
    (first order), so it needs no extra pass over the training samples.

    After ``meta_rounds`` the meta-network stays; the held-out samples are trained on.

    What a client uses is its newest hybrid with the last layer fitted to its own samples (``fitted``): under
    label skew its own body would only bring in what it has learnt by heart.

    Similarities are made of sketches of the models (``features``). Each client's is made right after
    its training, by its rank: there the model is in the cache, and all ranks work at once. What one
    round says of who is alike, and of what listening saves, is mostly noise: rank 0 keeps means of both.

    With ``drift`` a client's steps are corrected (``corrected.py``). Similarities and gains are then of where
    a client would go by itself from its model.
    """

    Options = Options
    wire = Wire(
        down="rows",
        up="rows",
        returned=2,
        kinds=("parameters", "gradients"),
        feature_kind="sketches",
    )
    models = ("local", "hybrid", "fitted")
    newcomer_models = ("hybrid", "local", "fitted")
    kept = 0.25  # the signs of the sketch, a byte each

    @property
    def headline(self) -> str:
        return self.options.report

    def returned(self, round: int) -> int:
        """The model alone where no gradient is needed: that is half of what goes up."""
        return self.wire.returned - (not self._steps_in(round))

    @property
    def features(self) -> int:
        return len(self.setting.layout.groups) * self.options.sketch

    # ---- rank 0: the meta-network

    def init(self, initial: torch.Tensor) -> State:
        import torch

        from amn_mpi import meta

        clients, layers = self.setting.clients, len(self.setting.layout.groups)
        return {
            "reports": torch.zeros(clients, dtype=torch.int64),
            "sketches": torch.zeros(clients, layers, self.options.sketch),
            "features": torch.zeros(clients, layers, self.options.sketch),
            "gains": torch.zeros(clients, layers),
            "judged": torch.zeros(clients, dtype=torch.bool),
            "meta": meta.MetaNetwork.start(layers, self.options.gate),
        }

    def mixing(self, server: State, round: int, cohort: np.ndarray) -> torch.Tensor:
        import torch

        if not self._seen(server).any():  # everybody's model is the initial one
            return torch.eye(self.setting.clients)[cohort].expand(self.matrices, -1, -1)
        if round <= self.options.common_rounds:
            return self._common(server).expand(self.matrices, len(cohort), -1)
        similarity, allowed, common = self._views(server, cohort)
        network = self._network(server)
        return network.mixing(network.attention(similarity, allowed), common)

    def learn(self, server: State, round: int, arrived: Arrived, measured: torch.Tensor) -> dict[str, Any]:
        """First the meta step, then the sketches: the hybrids came from the models before."""
        cohort = arrived.cohort
        if self._steps_in(round):
            self._meta_step(server, cohort, measured.float())
        self._remember(server, cohort, arrived.features.view(len(cohort), -1, self.options.sketch))
        return self._figures(server)

    def numbers(self, round: int) -> int:
        return self._steps_in(round) * self.setting.clients

    @property
    def most_numbers(self) -> int:
        return self.numbers(self.options.common_rounds + 1)

    def measure(self, round: int, cohort: np.ndarray, columns: Columns) -> torch.Tensor:
        """Inner products of g_i and where j would go, for the meta step; without ``drift`` theta_j."""
        return self.own_array("gradients", columns.rows[:, -1]) @ self.ahead(columns).T

    def attention(self, server: State) -> np.ndarray:
        """a_ij for every client from the latest models, (1, N, N)."""
        similarity, allowed, _ = self._views(server, np.arange(self.setting.clients))
        return self._network(server).attention(similarity, allowed).numpy()[None]

    # ---- clients that come when the training is over

    def welcome(self, server: State, initial: torch.Tensor) -> torch.Tensor:
        """The commonality of all: the mean of their newest models, by samples."""
        return self.mixed(server, self._common(server).expand(self.matrices, 1, -1).contiguous())[0]

    def receive(self, server: State, models: torch.Tensor) -> Reply:
        """Attention to the trained clients by the trained network, and the hybrids it gives."""
        import torch

        from amn_mpi import meta

        network = self._network(server)
        seen = self._seen(server)
        allowed = seen.expand(len(models), -1)
        sketches = torch.stack([self._sketch(model) for model in models])
        similarity = meta.similarities_to(sketches, self._centre(server), server["features"], seen)
        common = self._common(server).expand(len(models), -1)
        attention = network.attention(similarity, allowed)
        weights = network.mixing(attention, common).contiguous()
        return Reply(self.mixed(server, weights), attention.numpy()[None])

    def settle(
        self, answer: torch.Tensor, trained: Callable[..., torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        yield "hybrid", answer
        yield "local", trained()
        yield "fitted", trained(only=self._last)

    def _common(self, server: State) -> torch.Tensor:
        """Shares of the clients seen by now, by samples, (N,)."""
        import torch

        samples = torch.from_numpy(self.setting.samples).float() * self._seen(server)
        return samples / samples.sum()

    def small_floats(self, cohort: int) -> float:
        """Four times all sketches, and up to 8 layers x N x N on the way to weights or in a meta step."""
        clients, layers = self.setting.clients, len(self.setting.layout.groups)
        return layers * clients * (4 * self.options.sketch + 8 * clients)

    def _holds_out(self, round: int) -> bool:
        """Whether part of the clients' samples is kept from training in a round."""
        return round <= self.options.meta_rounds

    def _steps_in(self, round: int) -> bool:
        """Whether the meta-network learns in a round."""
        learns = self.options.evidence_lr > 0 or self.options.gate_lr > 0
        return learns and self._holds_out(round) and round > self.options.common_rounds

    def _network(self, server: State) -> MetaNetwork:
        from amn_mpi import meta

        return meta.MetaNetwork(server["meta"], self.options.tau)

    def _views(self, server: State, cohort: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Similarities (L, n, N), who may be listened to (n, N), and common weights (n, N)."""
        import torch

        from amn_mpi import meta

        seen, queries = self._seen(server), torch.from_numpy(cohort)
        samples = torch.from_numpy(self.setting.samples).float()
        allowed = seen.expand(len(cohort), -1) & seen[queries, None]
        allowed = allowed & (torch.arange(len(seen)) != queries[:, None])
        similarity = meta.similarities(server["features"], seen)[:, queries]
        return similarity, allowed, meta.leave_one_out(samples, seen, queries)

    def _seen(self, server: State) -> torch.Tensor:
        """Who has trained by now, (N,) bool."""
        return server["reports"] > 0

    def _remember(self, server: State, cohort: np.ndarray, sketches: torch.Tensor) -> None:
        """A cohort's sketches, (n, L, k), into each client's features: a mean over its rounds."""
        server["reports"][cohort] += 1
        server["sketches"][cohort] = sketches
        kept, share = server["features"][cohort], 1 / server["reports"][cohort, None, None]
        server["features"][cohort] = kept.lerp_(sketches - self._centre(server), share)

    def _centre(self, server: State) -> torch.Tensor:
        """What all models have in common, (L, k): it changes with the rounds, and so does who reports."""
        return server["sketches"][self._seen(server)].mean(0)

    def _meta_step(self, server: State, cohort: np.ndarray, inner: torch.Tensor) -> None:
        """A step by the products (L, n, N) of held-out gradients and models."""
        import torch

        from amn_mpi import meta

        o, judges = self.options, self._judges(cohort)
        if not judges.any():
            return
        similarity, allowed, common = self._views(server, cohort)
        attention = self._network(server).attention(similarity, allowed)
        samples = torch.from_numpy(self.setting.samples).float()
        weights = samples[cohort] * judges
        found = meta.lesson(attention, similarity, common, inner, weights / weights.sum(), o.tau)
        self._recall(server, cohort, judges, found.saved)
        samples = samples * server["judged"]
        gain, noise = meta.pooled(server["gains"], samples / samples.sum())
        meta.believe(server["meta"], found.slope, o.evidence_lr)
        meta.open_gates(server["meta"], gain, noise, self._prices, o.gate_lr)

    def _judges(self, cohort: np.ndarray) -> torch.Tensor:
        """Which of the cohort's clients hold samples out: a single one is never held out."""
        import torch

        return torch.from_numpy(self.setting.samples[cohort] > 1)

    def _recall(self, server: State, cohort: np.ndarray, judges: torch.Tensor, saved: torch.Tensor) -> None:
        """What the judges of a cohort save, (n, L), into each one's remembered gains."""
        import torch

        who = torch.from_numpy(cohort)[judges]
        left = self.options.recall * server["judged"][who, None]
        server["gains"][who] = left * server["gains"][who] + (1 - left) * saved[judges]
        server["judged"][who] = True

    @cached_property
    def _prices(self) -> torch.Tensor:
        """The share of the gain that opens each layer, (L,).

        A large layer takes most of a common model's data with it, so it has to bring more: with equal
        terms all gates open where the last layer's suffices. More than in proportion to its parameters
        even: else a layer with most of them opens before a small one that brings a tenth of the gain.
        """
        return self.options.price * self._shares**1.5

    @cached_property
    def _shares(self) -> torch.Tensor:
        """Of the parameters that each layer has, (L,)."""
        import torch

        sizes = torch.tensor([float(group.size) for group in self.setting.layout.groups])
        return sizes / sizes.sum()

    def _figures(self, server: State) -> dict[str, Any]:
        network = self._network(server)
        return {
            "gate": network.gates.tolist(),
            "evidence": network.omega.tolist(),
        }

    # ---- the client's rank

    def keeps(self, initial: torch.Tensor) -> State:
        return {"model": initial, "hybrid": initial, **super().keeps(initial)}

    def local_update(self, client: Client, received: torch.Tensor, engine: Engine) -> Update:
        import torch

        held = held_out(len(client.y), self.options.held_out) if self._holds_out(client.round) else 0
        x, y = client.x[held:], client.y[held:]
        hybrid, model, offset = received[0], client.up[0], self.offset(client.y)
        reach = engine.steps(len(y)) * engine.local.lr
        shift = self.correction(client, received, reach)
        start = self.shifted(hybrid, offset, room=model)
        model.copy_(engine.train(start, x, y, client.generator("shuffle"), shift=shift))
        self.shifted(model, -offset, room=model)
        state, ahead, room = {"model": model, "hybrid": hybrid}, model, torch.empty_like(model)
        figures = {}
        if shift is not None:
            ahead = torch.empty_like(model)
            state["drift"], afresh = self.drifted(client, hybrid, shift.mul_(reach), room, ahead)
            figures["reach"] = 0.0 if afresh else reach
            torch.sub(model, state["drift"], out=ahead)
        sketch = self._sketch(ahead, scratch=room)
        if self._steps_in(client.round):
            self.held_out_gradient(client, offset, held, engine, room)
        return Update(figures, state, sketch)

    @cached_property
    def _last(self) -> Part:
        """The layer nearest the scores."""
        layout = self.setting.layout
        return layout.part(last_layers(self.setting, 1, most=len(layout.layers)))

    @cached_property
    def _sketch(self) -> Sketch:
        """Drawn where a client trains first."""
        from amn_mpi import meta

        seed = rng.torch_seed(self.setting.seed, "sketch")
        return meta.Sketch(self.setting.layout.groups, self.options.sketch, seed)

    def deployed(
        self, client: Client, received: torch.Tensor, engine: Engine
    ) -> Iterator[tuple[str, torch.Tensor]]:
        hybrid = self.to_client(client.state["hybrid"], client.y)
        yield "local", self.to_client(client.state["model"], client.y)
        yield "hybrid", hybrid
        if epochs := self.options.fit:
            order = client.generator("fit")
            hybrid = engine.train(hybrid, client.x, client.y, order, epochs=epochs, only=self._last)
        yield "fitted", hybrid
