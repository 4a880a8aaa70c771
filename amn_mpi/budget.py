"""What a run will need: memory and traffic of every rank, from the declarations of its method.

Nothing is allocated to find out. Memory is counted on the host; what the library of matrix
products keeps for itself is part of ``BASE``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi import activations, declared, methods, plugin
from amn_mpi.errors import ConfigError
from amn_mpi.methods.base import Method, Setting
from amn_mpi.methods.mixing import Mixing, sharded
from amn_mpi.placement import Placement, place, training_steps

if TYPE_CHECKING:
    from amn_mpi.config import Config
    from amn_mpi.data import Federation
    from amn_mpi.params import ParameterLayout

MB = 2**20
# Python, torch and MPI in one rank before any work; the libraries' part is shared on a host.
BASE, SHARED = 250 * MB, 100 * MB
COVERED = 32 * MB  # of a batch's activations
MOST = 2**32  # parameters of a network for tokens, 17 GB; the blocks of far more take minutes to count
FLOAT, FIXED = 4, 8  # bytes of a parameter, and of one in the 64-bit sum of a mean


@dataclass(frozen=True)
class Need:
    """One rank: bytes of memory, and bytes that it moves.

    Attributes:
        data: its clients' samples. vectors: everything that has the model's size.
        work: what the largest batch takes on its way through the network, as far as BASE does not
            cover it.
        down, up: bytes of one round (the mean over rounds, where rounds differ). A worker receives
            ``down`` and sends ``up``; rank 0 sends the one and receives the other.
        down_run, up_run: bytes of the whole run, evaluations and the final models included.
    """

    clients: int
    data: int
    vectors: int
    down: int = 0
    up: int = 0
    down_run: int = 0
    up_run: int = 0
    work: int = 0

    @property
    def memory(self) -> int:
        return BASE + self.data + self.vectors + self.work


def layout_of(config: Config, fed: Federation) -> ParameterLayout:
    """Layout of the configured model; built without memory for its parameters, unless it is a user's own.

    Raises:
        ConfigError: the model does not fit the samples, or is larger than can be counted.
    """
    import torch

    from amn_mpi import models
    from amn_mpi.params import ParameterLayout

    if plugin.is_file(config.model.name):  # not every network can be built on the meta device
        return ParameterLayout.of(models.build(config.model, fed.shape, fed.classes, config.seed))
    try:
        with torch.device("meta"):
            layout = ParameterLayout.of(models.build(config.model, fed.shape, fed.classes, config.seed))
    except (RuntimeError, OverflowError):
        hidden = config.model.hidden
        raise ConfigError(f"model.hidden = {hidden}: valid is a number whose model can be stored") from None
    if config.model.tokens and layout.size > MOST:
        keys = ("vocabulary", "embedding", "hidden")
        told = ", ".join(f"model.{name} = {getattr(config.model, name)}" for name in keys)
        raise ConfigError(f"{told}: {layout.size:,} parameters; valid is a model of at most {MOST:,}")
    return layout


def check(config: Config, fed: Federation) -> None:
    """Whether the method and the baselines can work with the model and the local training.

    Raises:
        ConfigError: one of them cannot; told before anything is trained.
    """
    import torch

    if plugin.is_file(config.model.name):
        from amn_mpi import foreign

        foreign.check(config.model, fed.shape, fed.classes)
    setting = Setting(layout_of(config, fed), fed.train, config.seed, config.local)
    method = methods.get(config.method.name)(config.method, setting)
    sharded(config, method)
    declared.state(method, "keeps", method.keeps(torch.empty(setting.layout.size, device="meta")))
    for name in methods.listed(config.baselines):
        try:
            methods.get(name)(methods.baseline(config, name).method, setting)
        except ConfigError as error:
            raise ConfigError(f"baselines = {config.baselines}: {error}") from None


def planned(config: Config, fed: Federation, ranks: int, layout: ParameterLayout) -> list[Need]:
    """``needs`` with the network's activations where clients train."""
    batches = activations.training(config, fed) * _together(config, fed, layout)
    work = max(0, activations.largest(config, fed) - COVERED, batches - COVERED)
    found = needs(config, fed, ranks, layout)
    return [replace(need, work=work if need.clients else 0) for need in found]


def needs(config: Config, fed: Federation, ranks: int, layout: ParameterLayout) -> list[Need]:
    """What each of ``ranks`` ranks needs, rank 0 first."""
    setting = Setting(layout, fed.train, config.seed, config.local)
    method = methods.get(config.method.name)(config.method, setting)
    placement = place(training_steps(config.local, fed.train), max(1, ranks - 1))
    cohort = _cohort_size(config, fed.clients)
    workers = [_worker(config, fed, method, placement, owner) for owner in range(placement.owners)]
    if isinstance(method, Mixing) and sharded(config, method):
        return _in_columns(config, method, cohort, workers, alone=ranks == 1)
    size = FLOAT * layout.size
    if ranks == 1:
        alone, serves = workers[0], int(method.server_rows(cohort) * size) + _features(method, cohort)
        return [Need(alone.clients, alone.data, alone.vectors + serves)]
    vectors = int(_server_vectors(method, cohort, placement.owners) * size) + _features(method, cohort)
    moved = {
        name: sum(getattr(worker, name) for worker in workers)
        for name in ("down", "up", "down_run", "up_run")
    }
    return [Need(0, 0, vectors, **moved), *workers]


def memory_on_host(found: Sequence[Need]) -> int:
    """Bytes that ranks of one host need together."""
    return sum(need.memory for need in found) - (len(found) - 1) * SHARED


# ---- inside


def _worker(config: Config, fed: Federation, method: Method, placement: Placement, owner: int) -> Need:
    """An owner of clients; in the traffic of a run one number is worth 8 bytes."""
    clients = placement.clients(owner)
    own, wire, size = len(clients), method.wire, method.setting.layout.size
    share = own * _cohort_size(config, fed.clients) / fed.clients
    constant, each = method.worker_rows()
    constant += bool(config.local.momentum) + (config.precision == "bf16")  # a bf16 copy, its gradient
    group = min(_together(config, fed, method.setting.layout), own)
    if group > 1:
        # The stacks; and what a turn allocates until it ends, and fills for a mean, is there in each.
        own_each = method.scratch + (wire.up == "mean") * wire.returned * method.part.size / size
        constant += group * (activations.STACKED + bool(config.local.momentum)) + (group - 1) * own_each
    copied = group if group > 1 else 0  # samples, one after another for the batches
    vector = method.part.size * FLOAT
    down = {"none": 0.0, "broadcast": 1.0, "rows": share}[wire.down] * wire.received * vector
    up = {"none": 0.0, "mean": FIXED / FLOAT, "rows": share}[wire.up] * _returned(config, method) * vector
    # Every turn also returns its seconds.
    up += share * (8 * (1 + len(wire.figures)) + FLOAT * method.features)
    tests = own * len(method.models) * 8 * _evaluations(config)
    return Need(
        clients=own,
        data=_data_bytes(fed, clients) * (own + copied) // max(own, 1),
        vectors=round((constant + each * own) * size * FLOAT),
        down=round(down),
        up=round(up),
        down_run=round(down * config.rounds + _extra(config, method, own) * wire.received * vector),
        up_run=round(up * config.rounds) + tests + own * size * FLOAT,
    )


def _together(config: Config, fed: Federation, layout: ParameterLayout) -> int:
    """Clients whose turns are taken together on the CPU, where the batched engine is asked for."""
    return activations.together(config, fed, layout, "cpu") if config.engine == "batched" else 1


def _in_columns(config: Config, method: Mixing, cohort: int, workers: list[Need], alone: bool) -> list[Need]:
    """All ranks of a sharded server, given what the owners need for their clients."""
    clients, size, returned = method.setting.clients, method.setting.layout.size, method.wire.returned
    owners, rounds, given = len(workers), config.rounds, _returned(config, method)
    received = method.wire.received
    weights = method.matrices * cohort * clients
    told = cohort * len(method.wire.figures) * 8 / FLOAT  # figures, on every rank
    measured = cohort * sum(method.numbers(t) for t in range(1, rounds + 1))  # a block, in all rounds
    steps = [method.blocks[k : k + owners] for k in range(0, len(method.blocks), owners)]
    widest = max(sum(block.size for block in step) for step in steps)
    found = []
    for owner, need in enumerate(workers):
        own, blocks = need.clients * cohort / clients, method.blocks[owner::owners]
        held = sum(block.size for block in blocks)
        # Rows to send; rows of a block, and those of them that count; what the block takes beside them.
        floats = own * returned * widest + 2 * cohort * returned * method.widest + method.block_floats(cohort)
        floats += (clients * len(method.mirrors) + method.from_start) * held + weights
        floats += method.recalls * cohort * received * (held + method.widest)
        # Its own columns stay, those of the other clients' rows come, and as many hybrids go.
        down = rounds * ((cohort - own) * given * held - own * received * held + weights + told)
        up = rounds * ((cohort - own) * received * held - own * given * held) + len(blocks) * measured
        found.append(_more(need, floats, down, up, rounds))
    apart = method.apart_rows(cohort) * size + _features(method, cohort) / FLOAT
    if alone:
        return [Need(workers[0].clients, workers[0].data, found[0].vectors + int(FLOAT * apart))]
    rows = FLOAT * cohort * given * size  # what comes to rank 0 where the models lie there
    figures, figures_run = (sum(getattr(need, name) for need in workers) for name in ("up", "up_run"))
    up, up_run = round(figures - rows), round(figures_run - rounds * rows)
    server = Need(0, 0, FLOAT * (3 + owners) * size, up=up, up_run=up_run)
    down, up = rounds * (weights + told) * owners, len(method.blocks) * measured
    return [_more(server, apart, down, up, rounds), *found]


def _returned(config: Config, method: Method) -> float:
    """Vectors that a client returns in a round that it takes part in, the mean over rounds."""
    return sum(method.returned(t) for t in range(1, config.rounds + 1)) / config.rounds


def _more(need: Need, floats: float, down: float, up: float, rounds: int) -> Need:
    """``need`` with more floats held, and moved in the whole run."""
    return replace(
        need,
        vectors=need.vectors + int(FLOAT * floats),
        down=need.down + round(FLOAT * down / rounds),
        up=need.up + round(FLOAT * up / rounds),
        down_run=need.down_run + round(FLOAT * down),
        up_run=need.up_run + round(FLOAT * up),
    )


def _extra(config: Config, method: Method, own: int) -> float:
    """Vectors that a worker receives for evaluation alone.

    What evaluation gets after a round is what the next one starts from, as long as that is for the
    same clients: then only the last round's is one more.
    """
    if method.wire.down == "broadcast":
        return 1.0
    if not method.wire.renewed:
        return 0.0
    return float(own) if config.cohort >= 1 else own * _evaluations(config)


def _server_vectors(method: Method, cohort: int, owners: int) -> float:
    """Vectors of P floats on a rank 0 that owns no clients."""
    wire, share = method.wire, method.part.size / method.setting.layout.size
    fixed = 3 + owners  # workspace, gradient, initial model; final models, a row an owner
    most = method.setting.clients if wire.renewed else cohort
    down = {"none": 0, "broadcast": 1, "rows": most}[wire.down] * wire.received
    up = {"none": 0, "rows": cohort * wire.returned, "mean": 7 * wire.returned}[wire.up]
    return fixed + (down + up) * share + method.server_rows(cohort)


def _features(method: Method, cohort: int) -> int:
    """Bytes of features on rank 0: as they arrive, and without the clients that diverged."""
    return 2 * FLOAT * cohort * method.features


def _data_bytes(fed: Federation, clients: range) -> int:
    """Samples as float32 and labels as int64, training and test."""
    if not clients:
        return 0
    own = slice(clients.start, clients.stop)
    rows = int(fed.train[own].sum() + fed.test[own].sum())
    return rows * (FLOAT * int(np.prod(fed.shape, dtype=np.int64)) + 8)


def _cohort_size(config: Config, clients: int) -> int:
    return clients if config.cohort >= 1 else max(1, int(np.floor(config.cohort * clients + 0.5)))


def _evaluations(config: Config) -> int:
    """As rounds.evaluates says: every so many rounds, and each of the last five."""
    early = max(0, config.rounds - 5)
    return early // config.evaluate.every + config.rounds - early
