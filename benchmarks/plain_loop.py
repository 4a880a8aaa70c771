"""FedAvg as a careful person writes it in plain PyTorch, without MPI: the measure of the others.

One model whose parameters are views of a flat vector, ``SGD(fused=True)``, samples in memory, no DataLoader,
persistent worker processes with a thread each that take the next client from a shared counter. The processes
do rounds of one job or another as they are asked for, and sleep in between.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.nn import functional

from amn_mpi import models
from amn_mpi.config import Model
from amn_mpi.params import ParameterLayout, bind, vector_of

END = -1


@dataclass
class Job:
    """What a round does: one local epoch of every client.

    Attributes:
        x, y: samples of every client, (N, n, ...) and (N, n).
    """

    model: Model
    x: torch.Tensor
    y: torch.Tensor
    batch: int
    lr: float

    def module(self) -> torch.nn.Module:
        return models.build(self.model, tuple(self.x.shape[2:]), 10, 0)


class PlainLoop:
    """Processes that are there until the ``with`` ends; samples and models lie in shared memory."""

    def __init__(self, jobs: Sequence[Job], processes: int = 2) -> None:
        context = mp.get_context("spawn")
        self._gates = [context.Barrier(processes + 1) for _ in range(2)]
        self._queue, self._which = context.Value("i", 0), context.Value("i", 0)
        self._jobs = [(job, vector_of(job.module()).share_memory_()) for job in jobs]
        for job, _ in self._jobs:
            job.x.share_memory_()
            job.y.share_memory_()
        most = max((len(weights) for _, weights in self._jobs), default=0)
        self._sums = torch.zeros(processes, most).share_memory_()
        shared = (self._jobs, self._sums, self._gates, self._queue, self._which)
        self._workers = [context.Process(target=_work, args=(k, *shared)) for k in range(processes)]
        for worker in self._workers:
            worker.daemon = True
            worker.start()

    def __enter__(self) -> PlainLoop:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._which.value = END
            self._gates[0].wait()
        for worker in self._workers:
            worker.join() if kind is None else worker.terminate()

    def rounds(self, which: int, count: int) -> list[float]:
        """Wall seconds of each of ``count`` rounds of a job."""
        job, weights = self._jobs[which]
        self._which.value, seconds = which, []
        for _ in range(count):
            self._queue.value = 0
            self._gates[0].wait()
            began = time.perf_counter()
            self._gates[1].wait()
            torch.sum(self._sums[:, : len(weights)], 0, out=weights)
            weights /= len(job.x)
            seconds.append(time.perf_counter() - began)
        return seconds


def _work(
    k: int,
    jobs: list[tuple[Job, torch.Tensor]],
    sums: torch.Tensor,
    gates: list[Any],
    queue: Any,
    which: Any,
) -> None:
    torch.set_num_threads(1)
    own = []
    for job, _ in jobs:
        module = job.module()
        vector, _ = bind(module, ParameterLayout.of(module))
        own.append((module, vector, torch.optim.SGD(module.parameters(), lr=job.lr, fused=True)))
    while True:
        gates[0].wait()
        if which.value == END:
            return
        job, weights = jobs[which.value]
        module, vector, optimiser = own[which.value]
        total = sums[k, : len(weights)].zero_()
        while True:
            with queue.get_lock():
                client = queue.value
                queue.value += 1
            if client >= len(job.x):
                break
            vector.copy_(weights)
            order = torch.randperm(job.y.shape[1])
            for part in order.split(job.batch):
                optimiser.zero_grad(set_to_none=False)
                functional.cross_entropy(module(job.x[client, part]), job.y[client, part]).backward()
                optimiser.step()
            total += vector
        gates[1].wait()
