"""Time one step of SGD: plain PyTorch, the reference engine, the compiled one: ``python benchmarks/steps.py``

The compiled engine is timed in float32 and, where the processor has the instructions, in bf16.

Plain PyTorch is the loop that anyone would write: parameters that are views of a flat vector, autograd,
``SGD(fused=True)``, batches by index from a tensor, without a DataLoader. Everything is on one thread.
All take turns, so that what else the machine does hits all of them alike; thread CPU time is
counted, and the median over the turns is printed with the ratio to plain PyTorch and to the rate of a
product of matrices (sgemm, 768x768) measured in the same turns. GFLOP/s count the step as dense products;
the compiled backward leaves out most of what max-pooling and relu make zero, so it can exceed sgemm's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arithmetic import SIDE, flops  # noqa: E402
from report import write  # noqa: E402

from amn_mpi import compiled, models, native  # noqa: E402
from amn_mpi.compiled import CompiledEngine  # noqa: E402
from amn_mpi.config import Local, Model  # noqa: E402
from amn_mpi.local import Engine  # noqa: E402
from amn_mpi.params import ParameterLayout, bind, vector_of  # noqa: E402

CASES = (
    ("cnn", (1, 28, 28), 10),
    ("cnn", (1, 28, 28), 50),
    ("cnn", (3, 32, 32), 10),
    ("lenet5", (1, 28, 28), 10),
    ("lenet5", (3, 32, 32), 10),
    ("cnn_bn", (1, 28, 28), 10),
    ("lenet5_bn", (1, 28, 28), 10),
    ("lenet5_bn", (3, 32, 32), 10),
    ("mlp", (1, 28, 28), 10),
    ("linear", (1, 28, 28), 10),
)
CLASSES, LR = 10, 0.01


def plain(module: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int) -> Callable[[], None]:
    """One epoch of the loop that anyone would write."""
    bind(module, ParameterLayout.of(module))
    optimiser = torch.optim.SGD(module.parameters(), lr=LR, fused=True)
    generator = np.random.default_rng(1)

    def epoch() -> None:
        order = torch.from_numpy(generator.permutation(len(y)))
        for first in range(0, len(y), batch):
            part = order[first : first + batch]
            optimiser.zero_grad(set_to_none=False)
            functional.cross_entropy(module(x[part]), y[part]).backward()
            optimiser.step()

    return epoch


def engine(
    kind: Callable[..., Engine], name: str, x: torch.Tensor, y: torch.Tensor, batch: int, *instructions: str
) -> Callable[[], None]:
    shape = tuple(x.shape[1:])
    module = models.build(Model(name), shape, CLASSES, 0)
    made = kind(
        module,
        ParameterLayout.of(module),
        Local(batch_size=batch, epochs=1, lr=LR),
        shape,
        100,
        torch.device("cpu"),
        lambda: None,
        *instructions,
    )
    start, generator = vector_of(module), np.random.default_rng(1)

    def epoch() -> None:
        made.train(start, x, y, generator)

    return epoch


def samples(shape: tuple[int, ...], n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blots on an empty ground, one place a class: what is learnt is neither noise nor trivial."""
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (n,), generator=draw)
    height, width = shape[1:]
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    angle = (y + torch.rand(n, generator=draw)) * 2 * torch.pi / CLASSES
    up = (0.5 + 0.25 * angle.sin()).view(-1, 1, 1) * height
    left = (0.5 + 0.25 * angle.cos()).view(-1, 1, 1) * width
    blot = torch.exp(-((rows - up) ** 2 + (columns - left) ** 2) / 18)
    x = blot.unsqueeze(1) * (0.5 + torch.rand(n, *shape, generator=draw))
    return (x - 0.13) / 0.31, y


def measure(turns: int, works: list[Callable[[], None]]) -> np.ndarray:
    """Thread CPU seconds, (turns, works); all take turns."""
    for work in works * 2:
        work()
    found = np.empty((turns, len(works)))
    for turn in range(turns):
        for k, work in enumerate(works):
            began = time.thread_time()
            work()
            found[turn, k] = time.thread_time() - began
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--only", default="", help="of the models, by name")
    parser.add_argument("--quick", action="store_true", help="five turns")
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    turns, found = 5 if options.quick else options.turns, {}
    torch.set_num_threads(1)
    print(f"instructions: {native.available() or 'none, ' + native.reason()}")
    columns = "".join(f"{title:>9}" for title in ("plain", "engine", "compiled", "in bf16"))
    print(f"{'':22}{columns} us a step   {'ratio':>6}{'bf16':>7}{'GFLOP/s':>9}{'of sgemm':>9}")
    a, b, c = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE), torch.empty(SIDE, SIDE)
    for name, shape, batch in CASES:
        if options.only and name != options.only:
            continue
        module = models.build(Model(name), shape, CLASSES, 0)
        x, y = samples(shape, 10 * batch if name.startswith(("cnn", "lenet5")) else 60 * batch)
        works = [plain(module, x, y, batch), engine(Engine, name, x, y, batch)]
        fits = compiled.fits(module, shape)
        works.append(engine(CompiledEngine, name, x, y, batch) if fits else lambda: None)
        no_bf16 = not fits or ParameterLayout.of(module).normalised
        half = "" if no_bf16 else native.available("bf16")
        works.append(engine(CompiledEngine, name, x, y, batch, half) if half else lambda: None)
        works.append(lambda: torch.mm(a, b, out=c))
        seconds = np.median(measure(turns, works), 0)
        steps = len(y) // batch
        own, reference = seconds[2] / steps, seconds[0] / steps
        rate, best = flops(module, shape, batch) / own / 1e9, 2.0 * SIDE**3 / seconds[4] / 1e9
        title = f"{name} {'x'.join(map(str, shape))} by {batch}"
        micro = "".join(f"{s / steps * 1e6:9.0f}" for s in seconds[:4])
        ratios = f"{own / reference:6.3f}{seconds[3] / seconds[0]:7.3f}"
        print(f"{title:22}{micro}{'':13}{ratios}{rate:9.1f}{rate / best:9.2f}", flush=True)
        names = ("plain", "engine", *("compiled",) * fits, *("compiled in bf16",) * bool(half))
        found[title] = {name: float(s) / steps for name, s in zip(names, seconds)}
        found[title]["sgemm_gflops"] = best
    write(options.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
