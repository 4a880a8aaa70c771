"""From a configuration and prepared data to a run that can start, on every rank.

The ranks stay; runs come and go: the baselines of a run, and later whole comparisons, share one
start of the ranks and one reading of the data. What rank 0 alone needs is imported where it is used:
33 ranks pay for every import.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from amn_mpi import (
    __version__,
    activations,
    data,
    declared,
    engines,
    heap,
    methods,
    models,
    plugin,
    rng,
    rounds,
    signals,
    turns,
)
from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.config import Config
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.exchange import Exchange
from amn_mpi.keeper import Keeper
from amn_mpi.left import PARAMETERS
from amn_mpi.methods.base import Method, Setting
from amn_mpi.methods.mixing import Mixing, sharded
from amn_mpi.params import ParameterLayout, vector_of
from amn_mpi.placement import place, training_steps
from amn_mpi.rounds import Run, Samples
from amn_mpi.shards import Shards

if TYPE_CHECKING:
    from amn_mpi.recorder import Recorder
    from amn_mpi.runfolder import RunFolder


def choose_device(name: str, rank_on_host: int) -> torch.device:
    """``auto`` takes a GPU where there is one; ranks of a host take turns over its GPUs.

    Raises:
        ConfigError: ``cuda`` is asked for and there is none.
    """
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise ConfigError("device = cuda: this host has no usable GPU; valid are auto, cpu")
        return torch.device("cpu")
    return torch.device("cuda", rank_on_host % torch.cuda.device_count())


def load_samples(fed: data.Federation, clients: range, seed: int, device: torch.device) -> dict[int, Samples]:
    """A rank's clients as tensors; training samples in an order random but fixed for the run.

    The first of them can then serve as held-out part without another draw.
    """
    loaded: dict[int, Samples] = {}
    sizes, first, stay = fed.train[clients.start : clients.stop], 0, device.type == "cpu"
    room = heap.empty(int(sizes.sum() if stay else sizes.max(initial=0)), *fed.shape)
    for number in clients:  # one by one: what was read is copied, and goes before the next comes
        client = data.load_clients(fed, [number])[0]
        order = rng.generator(seed, "order", client=number).permutation(len(client.y_train))
        x = room[first : first + len(order)]
        first += len(order) if stay else 0
        np.take(client.x_train, order, 0, out=x.numpy(), mode="clip")  # by "raise" there is a copy between
        tests = (client.x_test.copy(), client.y_test.copy())  # a view would keep all samples alive
        y, x_test, y_test = (torch.from_numpy(a) for a in (client.y_train[order], *tests))
        loaded[number] = Samples(*(tensor.to(device) for tensor in (x, y, x_test, y_test)))
    return loaded


class Session:
    """The ranks with their data, ready for one run after another.

    A federation without a file leaves them without samples of their own: they serve newcomers.

    Raises:
        UserError: on rank 0 or the rank concerned; every rank takes part in the calls.
    """

    def __init__(self, config: Config, comm: Communicator, fed: data.Federation) -> None:
        torch.set_num_threads(config.threads)
        self.config, self.comm, self.fed = config, comm, fed
        self.placement = place(training_steps(config.local, fed.train), comm.owners)
        self.module = models.build(config.model, fed.shape, fed.classes, config.seed)
        self.layout = ParameterLayout.of(self.module)
        self.initial = vector_of(self.module)
        clients, device = range(0), torch.device("cpu")
        if comm.owner is not None:
            clients = self.placement.clients(comm.owner) if fed.path else clients
            serving = comm.server_on_host and comm.size > 1  # rank 0 needs no GPU
            device = choose_device(config.device, comm.rank_on_host - serving)
        self.device = device
        self.samples = load_samples(fed, clients, config.seed, device)
        if plugin.is_file(config.model.name):
            self._check_model(fed)
        # No larger than any client needs; a function of all clients, so the same on every rank.
        most = int(max(fed.train.max(), fed.test.max()))
        local = dataclasses.replace(config.local, batch_size=min(config.local.batch_size, most))
        batch = min(config.evaluate.batch_size, most)
        self._chosen = engines.choose(config, self.module, fed.shape, device)
        self._at_once = activations.together(config, fed, self.layout, device.type)
        self._trained_by = (self.module, self.layout, local, fed.shape, batch, device, comm.step)

    def _check_model(self, fed: data.Federation) -> None:
        """Raises ConfigError where a user's own network cannot take the first batch of one of its clients."""
        from amn_mpi import foreign

        size = self.config.local.batch_size
        batches = (own.x[:size].cpu() for own in self.samples.values())
        foreign.check_samples(self.config.model, batches, fed.shape, fed.classes)

    def load(self, fed: data.Federation, clients: range) -> dict[int, Samples]:
        """A rank's clients of another federation, as tensors where it trains."""
        return load_samples(fed, clients, self.config.seed, self.device)

    def method(self, config: Config) -> Method:
        def draw(number: int) -> torch.Tensor:
            return vector_of(
                models.build(config.model, self.fed.shape, self.fed.classes, config.seed, number)
            )

        setting = Setting(self.layout, self.fed.train, config.seed, config.local, draw, self.fed.classes)
        return methods.get(config.method.name)(config.method, setting)

    @property
    def arithmetic(self) -> dict[str, str]:
        """The processor's instructions that train, where that is known."""
        return {"instructions": self.instructions} if self.instructions else {}

    def meet(self) -> Session:
        """The ranks agree on their engines, and rank 0 learns of them; a collective call before any run.

        Raises:
            ConfigError: on every rank, see ``engines.agree``, and where a user's own model is not the same.
        """
        if plugin.is_file(self.config.model.name):
            self._agree_on_model()
        owns = self.comm.owner is not None
        chosen, self.instructions = engines.agree(self._chosen, self.config, self.comm)
        chosen = chosen if owns else "torch"
        precision = self.config.precision if owns else "fp32"  # who trains nobody needs no second copy
        self.engine = engines.make(chosen, self.instructions, self._at_once, precision, *self._trained_by)
        own = f"{self.engine.device.type}-{self.engine.name}" if owns else ""
        self.engine_name = "+".join(sorted({name for name in self.comm.collect(own) if name}))
        return self

    def _agree_on_model(self) -> None:
        """Raises ConfigError on every rank where a user's own file, or what it builds, is not alike."""
        name = self.config.model.name
        layout = json.dumps(self.layout.as_dict()).encode()
        mine = {
            "file": plugin.checksum(name, "model.name"),
            "network": zlib.crc32(layout),
            "initial weights": zlib.crc32(self.initial.numpy().tobytes()),
        }
        found = self.comm.collect((mine, self.comm.host))
        odd = [
            (what, rank, host)
            for what in mine
            for rank, (theirs, host) in enumerate(found)
            if theirs[what] != mine[what]
        ]
        for what, rank, host in self.comm.share(odd)[:1]:
            raise ConfigError(f"model.name = {name}: rank {rank} on {host} has another {what} than rank 0")

    def about(self, config: Config) -> dict[str, Any]:
        """What a checkpoint says of its run, as plain values."""
        import platform
        from importlib.metadata import version

        from amn_mpi import digest

        fed = self.fed
        shares = (fed.train, fed.test, fed.train_counts, fed.label_group, fed.concept_group)
        numbers = b"".join(np.asarray(part).astype("<i8").tobytes() for part in shares)
        return {
            "config": config.as_dict(),
            "layout": self.layout.as_dict(),
            "engine": self.engine_name,
            "files": plugin.checksums(config),
            "data": zlib.crc32(numbers, fed.content),
            "federation": fed.facts(),
            "versions": {
                "amn_mpi": __version__,
                "revision": ".".join(map(str, digest.revision(config.method.name))),
                "torch": version("torch"),
                "numpy": version("numpy"),
                "machine": platform.machine(),
                **self.arithmetic,
            },
        }

    def run(self, config: Config, clock: Clock, keeper: Keeper) -> Run:
        """A run at its beginning: buffers, and state that starts as the initial model."""
        method, comm = self.method(config), self.comm
        cohort = rng.cohort(config.seed, 1, self.fed.clients, config.cohort)
        shards = None
        if sharded(config, method) and isinstance(method, Mixing):
            shards = Shards(comm, self.placement, method, self.initial)
        exchange = Exchange(
            comm, self.placement, method, self.fed.train, len(cohort), shards, self.engine.at_once
        )
        start = method.keeps(self.initial)
        state = {
            name: torch.stack([v] * len(self.samples)) if self.samples else v[None][:0]
            for name, v in start.items()
        }
        server = declared.state(method, "init", method.init(self.initial)) if comm.is_server else {}
        if comm.is_server and shards is None:
            for name, own in method.mirrors.items():
                for client in range(self.fed.clients):
                    method.mirror(server, name, client, start[own])
        return Run(
            config=config,
            comm=comm,
            placement=self.placement,
            method=method,
            exchange=exchange,
            clock=clock,
            engine=self.engine,
            keeper=keeper,
            samples=self.samples,
            state=state,
            server=server,
            shards=shards,
        )


@signals.patience()  # not only in rounds.train: others may be there while rank 0 still gets ready
def train(
    session: Session,
    config: Config,
    clock: Clock,
    folder: RunFolder | None,
    keeps: Path | None = None,
    saved: Path | None = None,
) -> tuple[Run, Recorder | None]:
    """One run from its beginning, or from a checkpoint, to its end; the recorder exists on rank 0.

    Args:
        folder: gets the metrics. keeps: gets the checkpoints. saved: the checkpoint to go on from.
            All on rank 0, each may be None.
    """
    comm = session.comm
    keeper = Keeper(comm, config.checkpoint, keeps)
    run = session.run(config, clock, keeper)
    if not comm.is_server:
        keeper.restore(run, None)
        rounds.train(run, lambda outcome: None)
        return run, None
    from amn_mpi.progress import Progress
    from amn_mpi.recorder import Recorder

    progress = Progress(config.progress, config.rounds)
    recorder = Recorder(session.fed, run, folder, progress)
    keeper.about, keeper.history = session.about(config), recorder.history
    try:
        recorder.begin(keeper.restore(run, saved))
        rounds.train(run, recorder)
    finally:
        progress.close()
    return run, recorder


def final_models(run: Run) -> Iterator[tuple[int, np.ndarray]]:
    """(client, its own model) for all clients, on rank 0; a collective call.

    One client of each owner at a time: rank 0 needs a row an owner, never N x P. A row is valid
    until the next one is asked for.
    """
    comm, placement = run.comm, run.placement
    size, most = run.method.setting.layout.size, max(np.diff(placement.bounds))
    own = turns.personal_models(run, run.config.rounds)
    box = np.empty((placement.owners if comm.is_server else 0, size), np.float32)
    for k in range(most):
        counts = [int(k < len(placement.clients(owner))) for owner in range(placement.owners)]
        row = np.empty((0, size), np.float32)
        if comm.owner is not None and counts[comm.owner]:
            row = _headline(run, next(own)[1])
        elif k == 0:
            next(own, None)
        run.exchange.left.add(row.nbytes, PARAMETERS)
        rows = comm.gather_rows(row, counts, box[: sum(counts)] if comm.is_server else None)
        if comm.is_server:
            owners = [owner for owner, one in enumerate(counts) if one]
            yield from ((placement.bounds[owner] + k, rows[j]) for j, owner in enumerate(owners))
        comm.tick()


def _headline(run: Run, own: Iterator[tuple[str, torch.Tensor]]) -> np.ndarray:
    vectors = (vector for name, vector in own if name == run.method.headline)
    return next(vectors).detach().cpu().numpy().reshape(1, -1).copy()


def check_everywhere(comm: Communicator, error: UserError | None) -> None:
    """Raise on rank 0 what any rank ran into while it got ready, once for all."""
    told = comm.collect(None if error is None else (str(error), error.status))
    for message, status in filter(None, told):
        trouble = UserError(message)
        trouble.status = status
        with comm.awaited():
            raise trouble
    comm.share(None)
