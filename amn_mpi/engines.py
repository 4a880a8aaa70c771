"""Which engine trains a rank's clients: a function of configuration, model and device, on all ranks alike."""

from __future__ import annotations

from collections.abc import Callable

import torch

from amn_mpi import compiled, native
from amn_mpi.batched import BatchedEngine
from amn_mpi.comm import Communicator
from amn_mpi.config import Config, Local
from amn_mpi.errors import ConfigError
from amn_mpi.half import HalfEngine
from amn_mpi.local import Engine
from amn_mpi.params import ParameterLayout

LOOKED_UP = (torch.nn.Embedding, torch.nn.EmbeddingBag)


def choose(config: Config, module: torch.nn.Module, shape: tuple[int, ...], device: torch.device) -> str:
    """``compiled``, ``batched`` or ``torch``; ``agree`` may still change it.

    ``auto`` never takes ``batched`` on a CPU: it was slower there than ``compiled`` on every model that
    one knows, and no faster than ``torch`` on the others (docs/engines.md).

    Raises:
        ConfigError: an engine is asked for that does not know such a precision, model or device; or
            token numbers would be rounded.
    """
    single = config.precision == "fp32"
    if not single and any(isinstance(layer, LOOKED_UP) for layer in module.modules()):
        raise ConfigError(
            f"precision = {config.precision}: model.name = {config.model.name} looks tokens up by their "
            "numbers, and bfloat16 holds whole numbers only up to 256; valid is fp32"
        )
    normalised = bool(ParameterLayout.of(module).normalised)
    form = device.type == "cpu" and compiled.specification(module, shape) is not None
    knows = {
        "compiled": form and (single or not normalised),
        "batched": single and not normalised,
        "torch": True,
    }
    if config.engine == "auto":
        knows["batched"] &= device.type != "cpu"
        return next(name for name, does in knows.items() if does)
    if not knows[config.engine]:
        valid = [name for name, does in knows.items() if does]
        if not single and (config.engine == "batched" or form):
            beside = " with batch normalisation" if config.engine == "compiled" else ""
            raise ConfigError(
                f"engine = {config.engine}: it does not know precision = {config.precision}{beside}; "
                f"valid are {', '.join(['auto', *valid])}, or --precision fp32"
            )
        raise ConfigError(
            f"engine = {config.engine}: it does not know model.name = {config.model.name} on {device.type}; "
            f"valid are {', '.join(['auto', *valid])}"
        )
    return config.engine


def agree(chosen: str, config: Config, comm: Communicator) -> tuple[str, str]:
    """(engine, instruction set): the best set that all ranks run, "" where none of them trains compiled.

    Hosts may differ, and a result must not depend on who computes it. In bf16 ``auto`` takes ``torch``
    on all ranks where one of them has no compiled engine. A collective call.

    Raises:
        ConfigError: on every rank, where one of them cannot run the compiled engine.
    """
    trains, precision = comm.owner is not None and chosen == "compiled", config.precision
    mine: tuple[tuple[str, ...] | None, str, str] = (None, "", comm.host)
    if trains:
        mine = (native.runnable(precision), native.reason(precision), comm.host)
    found = comm.collect(mine)
    sets = [each for each, _, _ in found if each is not None]
    lacking = [(rank, why, host) for rank, (each, why, host) in enumerate(found) if each == ()]
    common = [name for name in (sets[0] if sets else ()) if all(name in each for each in sets)]
    best, lacking = comm.share((common[0] if common else "", lacking))
    if lacking and precision != "fp32" and config.engine == "auto":
        return "torch" if chosen == "compiled" else chosen, ""
    if lacking:
        rank, why, host = lacking[0]
        raise ConfigError(
            f"engine = {config.engine}: rank {rank} on {host} has no compiled engine"
            f"{'' if precision == 'fp32' else f' for precision = {precision}'} ({why}); "
            "--engine torch needs none and is slower"
        )
    return chosen, best


def make(
    chosen: str,
    instructions: str,
    at_once: int,
    precision: str,
    module: torch.nn.Module,
    layout: ParameterLayout,
    local: Local,
    shape: tuple[int, ...],
    eval_batch: int,
    device: torch.device,
    tick: Callable[[], None],
) -> Engine:
    """The engine of this rank; see ``Engine`` and ``BatchedEngine`` for the arguments."""
    what = (module, layout, local, shape, eval_batch, device, tick)
    if chosen == "compiled":
        return compiled.CompiledEngine(*what, instructions)
    if chosen == "batched":
        return BatchedEngine(*what, at_once)
    return HalfEngine(*what) if precision == "bf16" else Engine(*what)
