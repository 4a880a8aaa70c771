"""``precision: bf16``: passes in bfloat16 with float32 master weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import plain
import pytest
import torch
from ready import run_each
from running import REPOSITORY, one_line, result, run
from torch import nn
from torch.nn import functional

from amn_mpi import engines, methods, models, native
from amn_mpi.compiled import CompiledEngine
from amn_mpi.config import Config, Local, Model
from amn_mpi.errors import ConfigError
from amn_mpi.half import HalfEngine
from amn_mpi.local import Engine
from amn_mpi.methods import fedavg
from amn_mpi.params import ParameterLayout, Part, vector_of

ROUNDING = 2.0**-8  # of bf16: half the distance of two neighbours, relative
SHAPE, CLASSES, N = (1, 20, 20), 5, 30
BOTH = [
    "torch",
    pytest.param(
        "compiled",
        marks=pytest.mark.skipif(not native.available("bf16"), reason=native.reason("bf16") or "there"),
    ),
]


def engine(kind: type[Engine], name: Any, local: Local | None = None) -> Engine:
    module = models.build(Model(name, hidden=16), SHAPE, CLASSES, 3)
    made = (module, ParameterLayout.of(module), local or Local(epochs=1), SHAPE, 8)
    return kind(*made, torch.device("cpu"), lambda: None)


def start(name: Any) -> torch.Tensor:
    return vector_of(models.build(Model(name, hidden=16), SHAPE, CLASSES, 3))


def samples(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    y = torch.randint(0, CLASSES, (n,), generator=draw)
    return torch.randn(n, *SHAPE, generator=draw) + y.view(-1, 1, 1, 1) / 4, y


def order() -> np.random.Generator:
    return np.random.default_rng(8)


def distance(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).norm() / right.norm())


# ---- the engine


@pytest.mark.parametrize("name", models.MODELS)
def test_gradients_losses_and_answers_are_near_float32s(name: str) -> None:
    """A sum of products errs by a rounding or two; pooling and ReLU let some gradients through elsewhere."""
    (x, y), at = samples(), start(name)
    near = 0.01 if name in ("linear", "mlp", "mlp_bn") else 0.25
    half, full = engine(HalfEngine, name), engine(Engine, name)
    for made in (half, full):
        assert made.gradients.dtype == made.parameters.dtype == torch.float32
    assert 0 < distance(half.gradient(at, x, y), full.gradient(at, x, y)) < near
    assert half.loss(at, x, y) == pytest.approx(full.loss(at, x, y), rel=2 * ROUNDING)
    assert abs(half.correct(at, x, y) - full.correct(at, x, y)) <= 2
    for _ in zip(*(made.batches(x, y, order()) for made in (half, full))):
        assert 0 < distance(half.slope(at), full.slope(at)) < near
        assert half.batch_loss() == pytest.approx(full.batch_loss(), rel=4 * ROUNDING)


@pytest.mark.parametrize("name", ["mlp", "lenet5", "cnn"])
def test_the_gradient_is_that_of_a_network_in_bf16(name: str) -> None:
    """Where ReLU comes before pooling; equal patches tie there."""
    (x, y), at = samples(8), start(name)
    x[:, :, :9] = 0.25
    network = models.build(Model(name, hidden=16), SHAPE, CLASSES, 3).bfloat16()
    given = x.to(torch.bfloat16, memory_format=torch.channels_last)
    functional.cross_entropy(network(given).float(), y).backward()
    right = torch.cat([p.grad.float().reshape(-1) for p in network.parameters() if p.grad is not None])
    assert distance(engine(HalfEngine, name).gradient(at, x, y), right) < 1e-4


@pytest.mark.parametrize("name", ["mlp", "lenet5_bn"])
def test_steps_that_bf16_would_lose_are_kept(name: str) -> None:
    """The learning rate is so small that no weight of a bf16 network would ever move."""
    local = Local(batch_size=10, epochs=20, lr=1e-7)
    at, layout = (
        start(name).bfloat16().float(),
        ParameterLayout.of(models.build(Model(name, 16), SHAPE, 5, 3)),
    )
    trained = slice(0, layout.trained)
    moved = [engine(kind, name, local).train(at, *samples(), order()) - at for kind in (HalfEngine, Engine)]
    still = moved[0][trained].abs() < ROUNDING / 4 * at[trained].abs()
    assert still.float().mean() > 0.9  # but for the biases that start at 0
    assert torch.equal((at + moved[0])[trained][still].bfloat16(), at[trained][still].bfloat16())
    assert (moved[0][trained] != 0).float().mean() > 0.5
    # float32 rounds each step to a part in 2^24 of a weight; what is left is the gradients' error.
    assert distance(moved[0][trained], moved[1][trained]) < 0.1


def test_what_is_evaluated_is_the_bf16_network() -> None:
    (x, y), at = samples(), start("cnn_bn")
    made, layout = engine(HalfEngine, "cnn_bn"), engine(HalfEngine, "cnn_bn").layout
    rounded = at.clone()
    for group in layout.groups:
        if group.layer not in layout.normalised:
            rounded[group.start : group.stop] = at[group.start : group.stop].bfloat16().float()
    assert not torch.equal(rounded, at)
    assert made.loss(rounded, x, y) == made.loss(at, x, y)


def test_batch_normalisation_stays_in_float32() -> None:
    made, (x, y) = engine(HalfEngine, "cnn_bn", Local(epochs=3)), samples()
    layers = [layer for layer in made.module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        assert layer.weight.dtype == torch.float32 and layer.running_mean is not None
        shared = {t.untyped_storage().data_ptr() for t in (layer.weight, layer.running_mean, made.parameters)}
        assert len(shared) == 1
    full = engine(Engine, "cnn_bn", Local(epochs=3))
    part, at = slice(made.layout.trained, None), start("cnn_bn")
    found, right = (e.train(at, x, y, order())[part].clone() for e in (made, full))
    assert not torch.equal(found, at[part])
    assert distance(found, right) < 0.1


@pytest.mark.parametrize("name", ["lenet5", "resnet8", "cnn_bn"])
def test_a_client_leaves_no_trace_and_what_is_frozen_stays(name: str) -> None:
    (x, y), at = samples(), start(name)
    fresh, used = (engine(HalfEngine, name, Local(epochs=2, momentum=0.5)) for _ in range(2))
    alone = fresh.train(at, x, y, order()).clone()
    used.train(-at, x[:9] * 7, y[:9], order())
    used.gradient(at * 3, x, y)
    assert torch.equal(used.train(at, x, y, order()), alone)
    first = used.layout.groups[0]
    found = used.train(at, x, y, order(), only=Part.of([first]))
    changed = found != at
    assert changed[first.start : first.stop].any() and not changed[first.stop : used.layout.trained].any()
    assert torch.equal(used.train(at, x, y, order()), alone)


# ---- runs


def lowered(values: np.ndarray) -> np.ndarray:
    """To the nearest bf16, ties to even, from the bits of a float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def mlp_in_bf16(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, int]:
    """``plain.mlp`` where weights, samples and each layer's outputs and gradients are rounded to bf16."""
    w, x = lowered(w), lowered(x)
    first, second = w[: plain.HIDDEN * (plain.FEATURES + 1)], w[plain.HIDDEN * (plain.FEATURES + 1) :]
    w1, b1 = first[: -plain.HIDDEN].reshape(plain.HIDDEN, -1), first[-plain.HIDDEN :]
    w2, b2 = second[: -plain.CLASSES].reshape(plain.CLASSES, -1), second[-plain.CLASSES :]
    hidden = np.maximum(lowered(x @ w1.T + b1), 0)
    scores = lowered(hidden @ w2.T + b2)
    chance = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    by_scores = lowered((chance - np.eye(plain.CLASSES)[y]) / len(y))
    by_before = lowered(by_scores @ w2) * (hidden > 0)
    parts = (by_before.T @ x, by_before.sum(0), by_scores.T @ hidden, by_scores.sum(0))
    return 0.0, lowered(np.concatenate([p.ravel() for p in parts])), 0


def mlp_with_float32_sums(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray, int]:
    """``plain.mlp`` with the compiled engine's roundings: of what its products read."""
    x = lowered(x)
    first, second = w[: plain.HIDDEN * (plain.FEATURES + 1)], w[plain.HIDDEN * (plain.FEATURES + 1) :]
    w1, b1 = lowered(first[: -plain.HIDDEN]).reshape(plain.HIDDEN, -1), first[-plain.HIDDEN :]
    w2, b2 = lowered(second[: -plain.CLASSES]).reshape(plain.CLASSES, -1), second[-plain.CLASSES :]
    hidden = lowered(np.maximum(x @ w1.T + b1, 0))
    scores = hidden @ w2.T + b2
    chance = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    by_scores = (chance - np.eye(plain.CLASSES)[y]) / len(y)
    by_before = (lowered(by_scores) @ w2) * (hidden > 0)
    parts = (lowered(by_before).T @ x, by_before.sum(0), lowered(by_scores).T @ hidden, by_scores.sum(0))
    return 0.0, np.concatenate([p.ravel() for p in parts]), 0


@pytest.mark.parametrize("name", BOTH)
def test_rounds_are_those_of_numpy(name: str, tmp_path: Path) -> None:
    """Two rounds of FedAvg; the rare number that falls on the other side of a rounding is allowed."""
    local = Local(epochs=2, batch_size=8, lr=0.1, momentum=0.5, weight_decay=0.01)
    this = plain.start(
        tmp_path,
        fedavg.Options(),
        model=Model("mlp", hidden=plain.HIDDEN),
        local=local,
        precision="bf16",
        engine=name,
    )
    xs, ys = plain.numbers(this)
    p = np.array([len(y) for y in ys]) / sum(map(len, ys))
    ends = []
    for model in (mlp_in_bf16 if name == "torch" else mlp_with_float32_sums, plain.mlp):
        w = plain.initial(this)
        for t in (1, 2):
            draws = [plain.rng.generator(this.config.seed, "shuffle", t, i) for i in range(5)]
            turns = [plain.sgd(model, w, x, y, local, draw) for x, y, draw in zip(xs, ys, draws)]
            w = p @ np.stack(turns)
        ends.append(w)
    for _ in range(2):
        plain.one_round(this)
    found = this.server["model"].numpy()
    assert type(this.engine) is (HalfEngine if name == "torch" else CompiledEngine)
    assert np.linalg.norm(found - ends[0]) < 0.2 * np.linalg.norm(ends[1] - ends[0])
    np.testing.assert_allclose(found, ends[0], atol=2e-4)


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_every_method_trains_in_bf16(name: str, engine: str, tmp_path: Path) -> None:
    options = methods.options(name)()
    this = plain.start(tmp_path, options, precision="bf16", local=Local(epochs=1), engine=engine)
    outcome = [plain.one_round(this) for _ in range(2)][-1]
    compiles = engine == "auto" and name != "fedbn" and bool(native.available("bf16"))
    assert type(this.engine) is (CompiledEngine if compiles else HalfEngine) and not outcome.dropped
    rows = [tensor for tensor in (*this.server.values(), *this.state.values()) if torch.is_tensor(tensor)]
    assert all(row.dtype != torch.bfloat16 and row.isfinite().all() for row in rows)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    x, y = samples(160)
    np.savez(folder / "images.npz", x=x.numpy(), y=y.numpy())
    return folder


def types(path: Path) -> set[str]:
    """Of all data sets of a file."""
    found = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: found.append(item) or None)
        return {str(item.dtype) for item in found if isinstance(item, h5py.Dataset)}


def test_ranks_and_interruptions_change_no_bit(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("--data.name", images / "images.npz", "--data.cache", images, "--data.clients", 4)
    keys += ("--model.name", "lenet5_bn", "--local.epochs", 1, "--progress", "off", "--precision", "bf16")
    keys += ("--resume", "auto", "--checkpoint.every", 2, "--method.common_rounds", 1)

    def line(name: str, rounds: int, *more: object) -> tuple[object, ...]:
        return (*keys, "--out", tmp_path / name, "--rounds", rounds, *more)

    plain.here(*line("whole", 4))
    done = run_each([line("three", 4), line("parts", 2)], tmp_path, ranks=3)
    assert (done.returncode, done.stderr) == (0, "")
    plain.here(*line("parts", 4))
    assert capsys.readouterr().err == ""
    assert [each["ranks"] for each in result(tmp_path / "parts")["starts"]] == [3, 1]
    found = [result(tmp_path / name) for name in ("whole", "three", "parts")]
    assert len({each["models_sha256"] for each in found}) == 1
    assert {(each["precision"], each["engine"]) for each in found} == {("bf16", "cpu-torch")}
    newest = max((tmp_path / "parts" / "checkpoints").glob("*.h5"))
    for file in (newest, tmp_path / "parts" / "models.h5"):
        assert "float32" in types(file) and not {"float16", "int16", "uint16"} & types(file)
    with pytest.raises(ConfigError, match="precision = fp32.*was made with bf16"):
        plain.here(*line("parts", 6, "--precision", "fp32"))


def test_which_engine_trains_in_bf16() -> None:
    def chosen(engine: Any, name: Any = "cnn", device: str = "cpu") -> str:
        config = Config(method=fedavg.Options(), engine=engine, precision="bf16", model=Model(name))
        module = models.build(config.model, (1, 28, 28), 10, 0)
        return engines.choose(config, module, (1, 28, 28), torch.device(device))

    assert chosen("auto") == chosen("compiled") == "compiled"
    assert chosen("torch") == chosen("auto", "cnn_bn") == chosen("auto", device="cuda") == "torch"
    with pytest.raises(
        ConfigError, match="engine = batched.*precision = bf16.*valid are auto, compiled, torch"
    ):
        chosen("batched")
    with pytest.raises(
        ConfigError, match="compiled: .*bf16 with batch normalisation; valid are auto, torch, or"
    ):
        chosen("compiled", "cnn_bn")


COMMON = ("--data.clients", 4, "--rounds", 2, "--local.epochs", 1, "--progress", "off", "--precision", "bf16")


def test_all_ranks_take_torch_where_one_has_no_compiled_bf16(tmp_path: Path) -> None:
    """Rank 1 is on an older processor; ``--engine compiled`` names it."""
    script, env = REPOSITORY / "tests" / "scripts" / "instructions.py", {"AMN_CACHE": tmp_path / "cache"}
    done = run(*COMMON, "--out", tmp_path / "out", ranks=3, script=script, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert result(tmp_path / "out")["engine"] == "cpu-torch"
    assert "instructions" not in result(tmp_path / "out")["versions"]
    if native.available("bf16"):
        asked = (*COMMON, "--engine", "compiled", "--out", tmp_path / "other")
        done = run(*asked, ranks=3, script=script, env=env)
        assert done.returncode == 2
        words = (
            "engine = compiled: rank 1 on .* no compiled engine for precision = bf16 .AMN_NATIVE is generic"
        )
        assert re.search(words, one_line(done.stderr))


@pytest.mark.skipif(not native.available("bf16"), reason=native.reason("bf16") or "there")
def test_ranks_change_no_bit_of_the_compiled_engine(images: Path, tmp_path: Path) -> None:
    keys = ("--data.name", images / "images.npz", "--data.cache", images, "--model.name", "lenet5")
    plain.here(*COMMON, *keys, "--out", tmp_path / "1")
    done = run_each([[*COMMON, *keys, "--out", tmp_path / "3"]], tmp_path, ranks=3)
    assert (done.returncode, done.stderr) == (0, "")
    one, three = (result(tmp_path / name) for name in ("1", "3"))
    assert one["models_sha256"] == three["models_sha256"]
    assert {(each["precision"], each["engine"]) for each in (one, three)} == {("bf16", "cpu-compiled")}
    assert one["versions"]["instructions"] == three["versions"]["instructions"] == "avx512bf16"


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision = fp16: valid is .*fp32.*bf16"):
        plain.here("--precision", "fp16", "--out", tmp_path / "out")
