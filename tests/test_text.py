"""Networks that read tokens: against plain numpy, in every engine, what they refuse, and whole runs."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from ready import run_each
from running import REPOSITORY, result
from test_data_helpers import forget_folders, read

from amn_mpi import activations, budget, compiled, data, engines, methods, models, shapes
from amn_mpi.batched import BatchedEngine
from amn_mpi.config import Config, Data, Evaluate, Local, Model
from amn_mpi.dense import Dense
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.local import Engine
from amn_mpi.params import ParameterLayout, vector_of

NAMES = ("text", "textcnn")
EACH = pytest.mark.parametrize("name", NAMES)
V, D, H, LENGTH, CLASSES = 30, 5, 4, 9, 3
Array = np.ndarray


def options(name: Any, vocabulary: int = V) -> Model:
    return Model(name, hidden=H, vocabulary=vocabulary, embedding=D)


def build(name: str, seed: int = 0, length: int = LENGTH, vocabulary: int = V) -> torch.nn.Module:
    return models.build(options(name, vocabulary), (length,), CLASSES, seed)


def texts(
    n: int, seed: int = 1, length: int = LENGTH, vocabulary: int = V
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of 0 to ``length`` tokens, then padding, as the engines hold them; and labels."""
    draw = np.random.default_rng(seed)
    x = draw.integers(1, vocabulary, (n, length))
    x[np.arange(length) >= draw.integers(0, length + 1, n)[:, None]] = 0
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(draw.integers(0, CLASSES, n))


# ---- what they compute


def weights(module: torch.nn.Module) -> dict[str, Array]:
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def means(w: dict[str, Array], x: torch.Tensor) -> Array:
    """The mean of the embeddings of each text's tokens, (n, D)."""
    found = []
    for row in x.long().tolist():
        of_words = [w["embedding.weight"][token] for token in row if token]
        found.append(np.mean(of_words, axis=0) if of_words else np.zeros(D))
    return np.array(found)


def largest_answers(w: dict[str, Array], x: torch.Tensor) -> Array:
    """Window by window, filter by filter: (n, 3 H)."""
    found = []
    for row in x.long().tolist():
        words = [w["embedding.weight"][token] for token in row if token]
        answers = []
        for width in (3, 4, 5):
            kernel, bias = w[f"conv{width}.weight"], w[f"conv{width}.bias"]
            best = np.zeros(H)
            for first in range(len(words)):
                window = words[first : first + width]
                best = np.maximum(best, bias + sum(kernel[:, :, k] @ word for k, word in enumerate(window)))
            answers.append(best)
        found.append(np.concatenate(answers))
    return np.array(found)


FEATURES = {"text": means, "textcnn": largest_answers}


def scores(name: str, w: dict[str, Array], x: torch.Tensor) -> Array:
    return FEATURES[name](w, x) @ w["head.weight"].T + w["head.bias"]


@EACH
def test_scores_by_hand(name: str) -> None:
    module, (x, _) = build(name), texts(20)
    x[0], x[1] = 0, V - 1  # no token at all, and no padding
    np.testing.assert_allclose(module(x).detach().numpy(), scores(name, weights(module), x), atol=1e-5)


@EACH
def test_padding_counts_nothing(name: str) -> None:
    x, _ = texts(20)
    longer = torch.cat([x, torch.zeros(20, 6)], 1)
    torch.testing.assert_close(build(name)(x), build(name, length=LENGTH + 6)(longer), atol=1e-6, rtol=0)
    module = build(name)
    before = module(x).detach()
    with torch.no_grad():
        module.get_parameter("embedding.weight")[0] = 1000.0
    assert torch.equal(module(x), before)


def test_parameters_and_groups_by_hand() -> None:
    """AMN weighs one layer beside the other, FedPer keeps the last: these are the layers."""
    head = CLASSES * D + CLASSES
    layout = ParameterLayout.of(build("text"))
    assert [(g.name, g.size) for g in layout.groups] == [("embedding", V * D), ("head", head)]
    convolutions = [(f"conv{k}", H * D * k + H) for k in (3, 4, 5)]
    found = [(g.name, g.size) for g in ParameterLayout.of(build("textcnn")).groups]
    assert found == [("embedding", V * D), *convolutions, ("head", CLASSES * 3 * H + CLASSES)]


@EACH
def test_the_start_follows_from_the_seed(name: str) -> None:
    one, again, other = (vector_of(build(name, seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


@EACH
def test_images_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.name = {name}: needs texts of token numbers.*\(1, 8, 8\)"):
        models.build(options(name), (1, 8, 8), CLASSES, 0)


# ---- engines


@EACH
def test_the_gradient_by_hand_and_large_numbers_of_tokens(name: str) -> None:
    """As the reference engine takes it from its float32 samples; 2^24 - 1 is the largest token there is."""
    if name == "textcnn":
        big = options(name, 50_000)
    else:
        big = Model("text", vocabulary=2**24, embedding=1)
    module = models.build(big, (LENGTH,), CLASSES, 0)
    layout = ParameterLayout.of(module)
    at = vector_of(module)
    x, y = texts(1)
    x[0, :2] = torch.tensor([big.vocabulary - 1, big.vocabulary - 2])
    made = Engine(module, layout, Local(), (LENGTH,), 4, torch.device("cpu"), lambda: None)
    found = made.gradient(at, x, y)[: big.vocabulary * big.embedding].view(-1, big.embedding)
    touched = found.abs().sum(1).nonzero().flatten().tolist()
    assert touched == sorted({int(token) for token in x.flatten() if token})
    if name == "text":
        w = weights(module)
        mean = np.mean([w["embedding.weight"][int(token)] for token in x[0] if token], axis=0)
        raw = mean @ w["head.weight"].T + w["head.bias"]
        slope = (np.exp(raw) / np.exp(raw).sum() - np.eye(CLASSES)[int(y[0])]) @ w["head.weight"]
        count = int((x[0] == big.vocabulary - 1).sum())
        expected = slope * count / int((x[0] != 0).sum())
        np.testing.assert_allclose(found[big.vocabulary - 1], expected, rtol=1e-4)


SIZES = (11, 4, 9, 1, 16)  # batches of 4: last ones of 3, none, 1, 1 alone, none


@EACH
def test_the_batched_engine_trains_as_the_reference(name: str) -> None:
    local = Local(epochs=2, batch_size=4, lr=0.5, momentum=0.5, weight_decay=0.01)
    made: list[Any] = []
    for kind, more in ((BatchedEngine, (len(SIZES),)), (Engine, ())):
        module = build(name)
        layout = ParameterLayout.of(module)
        made.append(kind(module, layout, local, (LENGTH,), 6, torch.device("cpu"), lambda: None, *more))
    batched, reference = made
    held, start = [texts(n, seed) for seed, n in enumerate(SIZES)], vector_of(build(name))

    def work(k: int, engine: Engine) -> tuple[torch.Tensor, float, int]:
        trained = engine.train(start, *held[k], np.random.default_rng(k)).clone()
        return trained, engine.loss(trained, *held[k]), engine.correct(trained, *held[k])

    turns = [lambda engine, k=k: work(k, engine) for k in range(len(SIZES))]
    found = batched.together(turns, [reference.steps(n) for n in SIZES])
    for k, (trained, loss, right) in enumerate(found):
        expected = work(k, reference)
        torch.testing.assert_close(trained, expected[0], rtol=1e-4, atol=2e-5)
        assert loss == pytest.approx(expected[1], rel=1e-4) and right == expected[2]
        assert not torch.equal(trained, start)


def chosen(name: str, device: str = "cpu", **keys: Any) -> str:
    config = Config(method=methods.options("fedavg")(), model=options(name), **keys)
    return engines.choose(config, build(name), (LENGTH,), torch.device(device))


@EACH
def test_which_engines_take_them(name: str) -> None:
    assert chosen(name) == "torch" and chosen(name, "cuda") == chosen(name, engine="batched") == "batched"
    assert compiled.specification(build(name), (LENGTH,)) is None and not Dense.fits(build(name))
    with pytest.raises(ConfigError, match="engine = compiled: it does not know model.name = text"):
        chosen(name, engine="compiled")
    with pytest.raises(
        ConfigError, match="precision = bf16: model.name = text.*looks tokens up.*valid is fp32"
    ):
        chosen(name, precision="bf16")


# ---- forecast


@EACH
def test_layers_as_in_a_real_pass(name: str) -> None:
    found: list[int] = []
    module = build(name)
    for layer in module.children():
        layer.register_forward_hook(lambda layer, given, out: found.append(out.numel()))
    module(texts(1)[0])
    assert shapes.outputs(build(name), (LENGTH,)) == found and found[0] == LENGTH * D


def test_the_forecast_by_hand(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.npz")
    about = Data(name=str(path), cache=str(tmp_path / "cache"), min_samples=1)
    keys: Any = {"data": about, "evaluate": Evaluate(batch_size=2), "local": Local(batch_size=5)}
    config = Config(method=methods.options("fedavg")(), model=options("text"), **keys)
    fed = data.describe(about, 0, V)
    assert budget.layout_of(config, fed).size == V * D + CLASSES * D + CLASSES
    assert activations.training(config, fed) == 4 * 2 * (LENGTH * D + CLASSES) * 5
    assert activations.largest(config, fed) == max(
        4 * 2 * (LENGTH * D + CLASSES) * 5, 4 * 2 * (6 * LENGTH * D + LENGTH)
    )
    for huge in (
        Model("text", vocabulary=2**24, embedding=4096),
        Model("textcnn", 2**31 - 1, embedding=4096),
    ):
        with pytest.raises(ConfigError, match=rf"model.vocabulary = {huge.vocabulary}, .*most 4,294,967,296"):
            budget.layout_of(Config(method=config.method, model=huge), fed)


# ---- what is no token


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_folders(monkeypatch)


def stored(path: Path, spoil: Callable[[Array], Any] = lambda x: None, kind: str = "int64") -> Path:
    """Three clients with 20 texts each; in the file they are called ann, bob and cy."""
    x = texts(60)[0].numpy().astype(kind)
    spoil(x)
    np.savez(path, x=x, y=np.arange(60) % CLASSES, client=np.repeat(["ann", "bob", "cy"], 20))
    return path


def put(row: int, value: float) -> Callable[[Array], None]:
    def spoil(x: Array) -> None:
        x[row, 2] = value

    return spoil


BAD = {
    "negative": (put(21, -3), "int64", "client 1 (bob) has the token -3"),
    "beyond": (put(45, V), "int32", f"client 2 (cy) has the token {V}"),
    "fraction": (put(3, 2.5), "float64", "client 0 (ann) has the token 2.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_token_names_client_and_value(tmp_path: Path, case: str) -> None:
    """Looked at with and without the cache, and when other models have made the cache before."""
    spoil, kind, expected = BAD[case]
    path = stored(tmp_path / "a.npz", spoil, kind)
    about = Data(name=str(path), cache=str(tmp_path / "cache"))
    valid = f"valid are whole numbers from 0, which is padding, to {V - 1} (model.vocabulary = {V})"
    for look in (data.describe, data.prepare):
        with pytest.raises(UserError) as caught:
            look(about, 0, V)
        assert str(caught.value) == f"{path}: {expected}; {valid}"
    assert not (tmp_path / "cache").exists()
    assert data.prepare(about, 0).path  # numbers are numbers, for an mlp
    with pytest.raises(UserError) as caught:
        data.prepare(about, 0, V)
    assert str(caught.value) == f"{path}: {expected}; {valid}"
    assert data.prepare(about, 0, 0 if case != "beyond" else V + 1).clients == 3


def test_clients_that_are_dealt_out_have_numbers(tmp_path: Path) -> None:
    path = tmp_path / "pool.npz"
    np.savez(path, x=np.full((40, 4), 7), y=np.arange(40) % 2)
    about = Data(name=str(path), cache=str(tmp_path / "cache"), clients=2)
    with pytest.raises(UserError, match=r"pool.npz: client 0 has the token 7; valid .* to 6 \("):
        data.prepare(about, 0, 7)
    assert data.prepare(about, 0, 8).clients == 2


@pytest.mark.parametrize("kind", ["int16", "int32", "int64", "uint16", "uint64", "float32"])
def test_tokens_of_every_type(tmp_path: Path, kind: str) -> None:
    raw = read(str(stored(tmp_path / "a.npz", kind=kind)))
    assert raw.x.dtype == np.float32 and (raw.scale, raw.shift) == (1.0, 0.0)
    assert np.array_equal(raw.x, texts(60)[0].numpy())


def test_they_cannot_be_turned(tmp_path: Path) -> None:
    """A hidden group may call the labels otherwise, but its tokens stay as they are."""
    path = tmp_path / "pool.npz"
    x = texts(80)[0].numpy().astype(int)
    np.savez(path, x=x, y=np.arange(80) % 2)
    about = {"name": str(path), "cache": str(tmp_path / "cache"), "clients": 4, "concept_groups": 2}
    with pytest.raises(ConfigError, match="rotate needs square images"):
        data.prepare(Data(**about, concept="rotate"), 0, V)
    fed = data.prepare(Data(**about, concept="permute"), 0, V)
    parts = [part for c in data.load_clients(fed, range(4)) for part in (c.x_train, c.x_test)]
    assert sorted(map(bytes, np.concatenate(parts))) == sorted(map(bytes, x.astype(np.float32)))


# ---- whole runs, on the example's data

EXAMPLE = REPOSITORY / "examples" / "text.py"
RUNS: dict[str, tuple[object, ...]] = {
    "text": ("--model.name", "text", "--local.lr", 1, "--method.name", "fedavg_ft", "--rounds", 4),
    "amn": ("--model.name", "text", "--model.embedding", 8, "--method.common_rounds", 1, "--rounds", 3),
    "cnn": ("--model.name", "textcnn", "--model.hidden", 4, "--data.clients", 3, "--rounds", 1),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run on three ranks, one of them also in parts, and on one rank."""
    folder = tmp_path_factory.mktemp("text")
    runpy.run_path(str(EXAMPLE))["main"](str(folder / "tokens.npz"), 500)
    common = ("--data.name", folder / "tokens.npz", "--model.vocabulary", 500, "--progress", "off")
    common += ("--local.epochs", 1, "--checkpoint.every", 1)
    lines = [(*common, *keys, "--out", folder / f"three-{name}") for name, keys in RUNS.items()]
    parts = (*common, *RUNS["amn"], "--out", folder / "parts-amn")
    lines += [(*parts, "--rounds", 2), (*parts, "--resume", "auto")]
    ended = run_each(lines, folder, ranks=3)
    assert ended.returncode == 0, ended.stderr
    for name, keys in RUNS.items():
        plain.here(*common, *keys, "--data.cache", folder / "cache", "--out", folder / f"one-{name}")
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_the_same_on_one_and_three_ranks(done: Path, name: str) -> None:
    one, three = (result(done / f"{ranks}-{name}") for ranks in ("one", "three"))
    assert one["models_sha256"] == three["models_sha256"]
    assert json.dumps(one["per_client"]["accuracy"]) == json.dumps(three["per_client"]["accuracy"])


def test_it_goes_on_where_it_stopped(done: Path) -> None:
    assert result(done / "parts-amn")["models_sha256"] == result(done / "three-amn")["models_sha256"]


def test_it_learns(done: Path) -> None:
    """Who always names a client's most frequent field is right in fewer than half of the cases."""
    with np.load(done / "tokens.npz") as held:
        guess = [
            np.bincount(held["y"][held["client"] == k]).max() / (held["client"] == k).sum() for k in range(16)
        ]
    assert result(done / "three-text")["mean_accuracy"] > 100 * np.mean(guess) + 15
