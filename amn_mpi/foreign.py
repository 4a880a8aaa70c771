"""A user's own network: built, held against what training takes for granted, and measured."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from amn_mpi import plugin
from amn_mpi.errors import ConfigError, Interrupted, Stopped
from amn_mpi.params import ParameterLayout, vector_of

if TYPE_CHECKING:
    from amn_mpi.config import Model

Shape = tuple[int, ...]


def build(name: str, shape: Shape, classes: int, hidden: int) -> nn.Module:
    """The network that ``name``, FILE.py:NAME, makes for samples of ``shape``.

    Called as NAME(shape, classes), with ``hidden=`` where it has a parameter of that name.

    Raises:
        ConfigError: it cannot be loaded, fails, or gives something that cannot be trained here.
    """
    function = plugin.load(name, "model.name")
    if not callable(function):
        _refuse(name, f"is {type(function).__name__}, which cannot be called")
    more = {"hidden": hidden} if _takes_hidden(function) else {}
    module = _tried(name, f"called with {shape}, {classes}", lambda: function(shape, classes, **more))
    if not isinstance(module, nn.Module):
        _refuse(name, f"gave {type(module).__name__}; valid is a torch.nn.Module")
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [n for n, tensor in tensors if is_lazy(tensor)]
    if lazy:
        _refuse(name, f"{lazy[0]} has no shape yet; use layers of fixed sizes, not lazy ones")
    if not any(p.requires_grad for p in module.parameters()):
        _refuse(name, "the network has no trainable parameters")
    for n, tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype != torch.float32 or tensor.is_complex():
            _refuse(name, f"{n} is {tensor.dtype}; valid is torch.float32")
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
    if frozen:
        _refuse(name, f"{frozen[0]} is not trainable; all parameters are trained here, use a buffer for it")
    return module


def check(options: Model, shape: Shape, classes: int) -> None:
    """Whether the network can be trained: the same at each build, (n, classes) scores, nothing random.

    On rank 0, before anything is trained.

    Raises:
        ConfigError: it cannot; the line says why.
    """
    _check(options, tuple(shape), classes)


@cache
def _check(options: Model, shape: Shape, classes: int) -> None:
    from amn_mpi import models

    name = options.name
    one, other = (models.build(options, shape, classes, 0) for _ in range(2))
    layout = ParameterLayout.of(one)
    if ParameterLayout.of(other) != layout:
        sizes = f"{layout.size:,} and {ParameterLayout.of(other).size:,} parameters"
        _refuse(name, f"two calls gave different networks ({sizes})")
    if not torch.equal(vector_of(one), vector_of(other)):
        _refuse(name, "two calls gave different weights; draw them from torch's own generator")
    with torch.random.fork_rng(devices=[]):
        one.eval()
        for n in (1, 2):
            with torch.no_grad():
                _passed(name, one, torch.zeros(n, *shape), classes)
            if ParameterLayout.of(one) != layout:
                _refuse(name, "the network's parameters change with its input; valid are fixed ones")
        _check_training(name, other, shape, classes)


def _check_training(name: str, module: nn.Module, shape: Shape, classes: int) -> None:
    """As the engine does it: without running statistics a module stays in the mode for training."""
    module.train()
    drawn = torch.get_rng_state()
    n = 2 if ParameterLayout.of(module).normalised else 1
    scores = _passed(name, module, torch.zeros(n, *shape), classes)
    if not torch.equal(torch.get_rng_state(), drawn):
        _refuse(
            name, "the network draws random numbers in training (dropout?); results would depend on ranks"
        )
    if not scores.requires_grad:
        _refuse(name, "its scores do not depend on its parameters, as far as autograd can see")


def check_samples(options: Model, samples: Iterable[torch.Tensor], shape: Shape, classes: int) -> None:
    """Whether the network takes what clients have, and stays as it is: zeros do not tell all.

    Args:
        samples: batches, (n, *shape) each; on the rank that has them.

    Raises:
        ConfigError: it cannot be trained on them; the line says why.
    """
    from amn_mpi import models

    module = models.build(options, shape, classes, 0)
    before = {n: (p, p.detach().clone()) for n, p in module.named_parameters()}
    normalised = ParameterLayout.of(module).normalised
    with torch.random.fork_rng(devices=[]):
        for x in samples:
            module.train(len(x) > 1 or not normalised)
            scores, again = (_passed(options.name, module, x, classes) for _ in range(2))
            _check_unchanged(options.name, module, before)
            if not torch.equal(scores.nan_to_num(), again.nan_to_num()):
                _refuse(options.name, "the network gives other scores for the same samples each time")
            _differentiated(options.name, module, scores)


def _check_unchanged(name: str, module: nn.Module, before: Mapping[str, tuple[nn.Parameter, Any]]) -> None:
    now = dict(module.named_parameters())
    if now.keys() != before.keys() or any(now[n] is not p for n, (p, _) in before.items()):
        _refuse(name, "the network's parameters change with its input; valid are fixed ones")
    if not all(torch.equal(p, value) for p, value in before.values()):
        _refuse(name, "the network alters its parameters when it is called; valid is to let training do it")


def _differentiated(name: str, module: nn.Module, scores: torch.Tensor) -> None:
    parameters = list(module.parameters())
    _tried(
        name,
        "the gradient of its scores",
        lambda: torch.autograd.grad(scores.sum(), parameters, allow_unused=True),
    )


def _passed(name: str, module: nn.Module, x: torch.Tensor, classes: int) -> torch.Tensor:
    """Scores of ``x``."""
    n = len(x)
    found = _tried(name, f"the network given {tuple(x.shape)}", lambda: module(x.clone()))
    if not isinstance(found, torch.Tensor):
        _refuse(name, f"the network gives {type(found).__name__}; valid is a tensor of scores (n, {classes})")
    if tuple(found.shape) != (n, classes):
        _refuse(name, f"for {n} samples the network gives {tuple(found.shape)}; valid is {(n, classes)}")
    if found.dtype != torch.float32:
        _refuse(name, f"the network gives {found.dtype}; valid is torch.float32")
    if found.device != x.device:
        _refuse(name, f"the network gives scores on {found.device}; valid is the device of its samples")
    return found


def outputs(module: nn.Module, sample: Shape) -> list[int]:
    """Numbers of every layer's output for one sample, by a real pass; what is no module is not seen."""
    sizes: list[int] = []

    def note(_layer: nn.Module, _given: Any, found: Any) -> None:
        each = found if isinstance(found, (tuple, list)) else [found]
        sizes.append(sum(t.numel() for t in each if isinstance(t, torch.Tensor)))

    for layer in module.modules():
        if layer is module or not list(layer.children()):
            layer.register_forward_hook(note)
    module.eval()
    with torch.no_grad():
        module(torch.zeros(1, *sample))
    return sizes


def _takes_hidden(function: Any) -> bool:
    try:
        return "hidden" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _tried(name: str, what: str, work: Any) -> Any:
    try:
        return work()
    except (Stopped, Interrupted, MemoryError):
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise ConfigError(
            f"model.name = {name}: {what} fails: {plugin.told(error, plugin.path_of(name))}"
        ) from None


def _refuse(name: str, why: str) -> Any:
    raise ConfigError(f"model.name = {name}: {why}")
