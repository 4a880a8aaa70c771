"""FedAvg as a careful person writes it in plain PyTorch, without MPI: the measure of the others.

One model whose parameters are views of a flat vector, ``SGD(fused=True)``, samples in memory, no DataLoader,
persistent worker processes with a thread each that take the next client from a shared counter.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.nn import functional

from amn_mpi import models
from amn_mpi.config import Model
from amn_mpi.params import ParameterLayout, bind, vector_of


def rounds(
    model: Model, x: torch.Tensor, y: torch.Tensor, batch: int, lr: float, count: int, processes: int = 2
) -> list[float]:
    """Wall seconds of each of ``count`` rounds with one local epoch.

    Args:
        x, y: samples of every client, (N, n, ...) and (N, n).
    """
    context = mp.get_context("spawn")
    weights = vector_of(_module(model, x)).share_memory_()
    sums = torch.zeros(processes, len(weights)).share_memory_()
    gates, queue = [context.Barrier(processes + 1) for _ in range(2)], context.Value("i", 0)
    shared = (model, x.share_memory_(), y.share_memory_(), batch, lr, count, weights, sums, gates, queue)
    workers = [context.Process(target=_work, args=(k, *shared), daemon=True) for k in range(processes)]
    for worker in workers:
        worker.start()
    seconds = []
    for _ in range(count):
        queue.value = 0
        gates[0].wait()
        began = time.perf_counter()
        gates[1].wait()
        torch.sum(sums, 0, out=weights)
        weights /= len(x)
        seconds.append(time.perf_counter() - began)
    for worker in workers:
        worker.join()
    return seconds


def _module(model: Model, x: torch.Tensor) -> torch.nn.Module:
    return models.build(model, tuple(x.shape[2:]), 10, 0)


def _work(
    k: int,
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    batch: int,
    lr: float,
    count: int,
    weights: torch.Tensor,
    sums: torch.Tensor,
    gates: list[Any],
    queue: Any,
) -> None:
    torch.set_num_threads(1)
    module = _module(model, x)
    own, _ = bind(module, ParameterLayout.of(module))
    optimiser = torch.optim.SGD(module.parameters(), lr=lr, fused=True)
    for _ in range(count):
        gates[0].wait()
        sums[k].zero_()
        while True:
            with queue.get_lock():
                client = queue.value
                queue.value += 1
            if client >= len(x):
                break
            own.copy_(weights)
            order = torch.randperm(y.shape[1])
            for part in order.split(batch):
                optimiser.zero_grad(set_to_none=False)
                functional.cross_entropy(module(x[client, part]), y[client, part]).backward()
                optimiser.step()
            sums[k] += own
        gates[1].wait()
