"""The numbers of a network's layers against a real pass, and what finding them must not import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from running import environment

from amn_mpi import models, shapes
from amn_mpi.config import Model


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (1, 28, 21)])
@pytest.mark.parametrize("name", models.MODELS)
def test_as_in_a_real_pass(name: str, shape: tuple[int, ...]) -> None:
    found: list[int] = []
    module = models.build(Model(name, 7), shape, 5, 0)  # type: ignore[arg-type]
    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda layer, given, out: found.append(out.numel()))
    module.eval()(torch.zeros(1, *shape))
    assert shapes.outputs(models.build(Model(name, 7), shape, 5, 0), shape) == found  # type: ignore[arg-type]


def test_no_compiler_is_imported() -> None:
    """Of 33 ranks 32 would wait for it."""
    lines = (
        "import sys, torch",
        "from amn_mpi import models, shapes",
        "from amn_mpi.config import Model",
        "with torch.device('meta'): module = models.build(Model('resnet8'), (3, 32, 32), 10, 0)",
        "shapes.outputs(module, (3, 32, 32))",
        "print([name for name in ('sympy', 'torch._dynamo') if name in sys.modules])",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert done.stdout == "[]\n"
