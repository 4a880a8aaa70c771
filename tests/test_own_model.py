"""A model out of a user's own file: checked, trained like any other, rebuilt, and not mistaken for ours."""

from __future__ import annotations

import json
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

from amn_mpi import activations, compiled, foreign, models, params, plugin
from amn_mpi.config import Config, Data, Model
from amn_mpi.data import prepare
from amn_mpi.dense import fully_connected
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.methods import fedavg

EXAMPLE = REPOSITORY / "examples" / "own_model.py"
KEYS = (
    "--data.clients",
    4,
    "--rounds",
    3,
    "--local.epochs",
    1,
    "--progress",
    "off",
    "--method.name",
    "fedavg",
)
SHAPE, CLASSES = (1, 8, 8), 10
HEAD = "import torch\nfrom torch import nn\n"


def written(folder: Path, text: str, name: str = "build") -> str:
    path = folder / "mine.py"
    path.write_text(HEAD + text)
    return f"{path}:{name}"


def refused(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        foreign.check(Model(name), SHAPE, CLASSES)
    told = str(caught.value)
    assert told.startswith(f"model.name = {name}: ") and "\n" not in told
    return told


# ---- runs


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On three ranks a whole run, and one of two rounds that goes on to three; on one rank the whole run."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(EXAMPLE.read_text())
    keys = (*KEYS, "--model.name", f"{folder}/net.py:build", "--model.hidden", 9, "--checkpoint.every", 1)
    parts = (*keys, "--out", folder / "parts")
    whole = (*keys, "--out", folder / "three")
    ended = run_each([whole, (*parts, "--rounds", 2), (*parts, "--resume", "auto")], folder, ranks=3)
    assert (ended.returncode, ended.stderr) == (0, "")
    plain.here(*keys, "--out", folder / "one")
    return folder


def test_the_same_bits_on_one_and_three_ranks_and_in_parts(done: Path) -> None:
    found = [result(done / name) for name in ("one", "three", "parts")]
    assert found[0]["parameters"] == 64 * 9 + 9 + 2 * (9 * 9 + 9) + 2 * 9 + 9 * 10 + 10
    assert len({each["models_sha256"] for each in found}) == 1
    assert len({json.dumps(each["per_client"]["accuracy"]) for each in found}) == 1
    assert found[0]["mean_accuracy"] > 30


def test_it_can_be_rebuilt_as_the_readme_says(done: Path) -> None:
    with h5py.File(done / "one" / "models.h5") as file:
        about, row = dict(file.attrs), file["models"][2]
    config = json.loads(about["config"])
    module = models.build(Model(**config["model"]), tuple(about["shape"]), int(about["classes"]), seed=0)
    params.load_into(module, row)
    assert type(module[2]).__name__ == "Residual"
    np.testing.assert_array_equal(params.vector_of(module).numpy(), row)


def test_another_file_under_the_same_name_is_not_gone_on_with(done: Path) -> None:
    path = done / "net.py"
    path.write_text(path.read_text() + "\n# changed\n")
    keys = (*KEYS, "--model.name", f"{path}:build", "--model.hidden", 9, "--out", done / "more")
    keys += ("--resume", sorted((done / "parts" / "checkpoints").glob("*.h5"))[-1])
    ended = run(*keys)
    assert ended.returncode == 2
    told = one_line(ended.stderr)
    assert "the file has changed" in told and "--checkpoint.accept model.name" in told
    env = {"AMN_CACHE": done / "cache"}
    ended = run(*keys, "--checkpoint.accept", "model.name", env=env)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_ranks_that_see_other_files(tmp_path: Path) -> None:
    """The same name, but what it builds depends on the rank: refused by all in one line."""
    name = written(
        tmp_path,
        "import os\ndef build(s, c): return nn.Sequential(nn.Flatten(), "
        "nn.Linear(64, 5 + int(os.environ['PMI_RANK'])), nn.Linear(5 + int(os.environ['PMI_RANK']), c))",
    )
    ended = run(*KEYS, "--model.name", name, "--out", tmp_path / "out", ranks=3)
    assert ended.returncode == 2
    assert "rank 1 on" in one_line(ended.stderr) and "another network than rank 0" in ended.stderr


def test_a_rank_that_cannot_build_it(tmp_path: Path) -> None:
    name = written(
        tmp_path,
        "import os\nif os.environ['PMI_RANK'] == '2': raise ValueError('no such luck')\n"
        "def build(s, c): return nn.Sequential(nn.Flatten(), nn.Linear(64, c))",
    )
    ended = run(*KEYS, "--model.name", name, "--out", tmp_path / "out", ranks=3)
    assert ended.returncode == 2
    assert "line 4: ValueError: no such luck" in one_line(ended.stderr)


# ---- what cannot be


BAD = {
    "raise": (
        "def build(s, c): return 1 / 0",
        "(1, 8, 8), 10 fails: line 3: ZeroDivisionError: division by zero",
    ),
    "type": ("def build(s, c): return 3", "gave int; valid is a torch.nn.Module"),
    "none": ("def build(s, c): return nn.Flatten()", "no trainable parameters"),
    "lazy": ("def build(s, c): return nn.Sequential(nn.Flatten(), nn.LazyLinear(c))", "has no shape yet"),
    "double": (
        "def build(s, c): return nn.Linear(8, c).double()",
        "weight is torch.float64; valid is torch.float32",
    ),
    "shape": ("def build(s, c): return nn.Linear(8, c)", "gives (1, 1, 8, 10); valid is (1, 10)"),
    "forward": ("def build(s, c): return nn.Linear(7, c)", "given (1, 1, 8, 8) fails: RuntimeError"),
    "call": ("build = 3", "is int, which cannot be called"),
    "two": (
        "k = [4]\ndef build(s, c):\n    k[0] += 1\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, k[0]), nn.Linear(k[0], c))",
        "two calls gave different networks (385 and 460 parameters)",
    ),
    "weights": (
        "import random\ndef build(s, c):\n    n = nn.Sequential(nn.Flatten(), nn.Linear(64, c))\n"
        "    n[1].bias.data.fill_(random.random())\n    return n",
        "different weights; draw them from torch's own generator",
    ),
    "grows": (
        "class N(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = nn.Linear(64, 10)\n    def forward(self, x):\n"
        "        self.b = nn.Linear(len(x), 2)\n        return self.a(x.flatten(1))\n"
        "def build(s, c): return N()",
        "parameters change with its input",
    ),
    "dropout": (
        "def build(s, c): return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, c))",
        "draws random numbers in training",
    ),
    "frozen": (
        "def build(s, c):\n    n = nn.Sequential(nn.Flatten(), nn.Linear(64, c))\n"
        "    n[1].bias.requires_grad_(False)\n    return n",
        "1.bias is not trainable",
    ),
    "syntax": ("def build(:", "fails on import: line 3: SyntaxError"),
    "import": (
        "import not_there",
        "fails on import: line 3: ModuleNotFoundError: No module named 'not_there'",
    ),
    "exit": ("raise SystemExit(3)", "fails on import: line 3: SystemExit: 3"),
    "other": ("def one(s, c): pass\ndef _two(): pass", "the file has no build; it has one"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained(tmp_path: Path, name: str) -> None:
    text, told = BAD[name]
    assert told in refused(written(tmp_path, text))


NETWORK = """
class N(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 10)
    def forward(self, x):
        found = self.a(x.flatten(1))
        if x.abs().sum() > 0:
            {}
        return found
def build(s, c): return N()
"""
BAD_ON_SAMPLES = {
    "grows": ("self.b = nn.Linear(2, 2)", "parameters change with its input"),
    "replaces": ("self.a.weight = nn.Parameter(self.a.weight.clone())", "parameters change with its input"),
    "alters": ("self.a.weight.data.mul_(0.5)", "alters its parameters when it is called"),
    "raises": ("raise IndexError('index out of\\nrange')", "line 11: IndexError: index out of range"),
    "exits": ("raise SystemExit(3)", "line 11: SystemExit: 3"),
    "shape": ("found = found[:, :3]", "for 4 samples the network gives (4, 3); valid is (4, 10)"),
    "device": ("found = found.to('meta')", "gives scores on meta; valid is the device of its samples"),
    "numpy": (
        "import numpy; found = found + float(numpy.random.random())",
        "other scores for the same samples each time",
    ),
}


@pytest.mark.parametrize("name", BAD_ON_SAMPLES)
def test_what_cannot_be_trained_on_the_samples_that_are_there(tmp_path: Path, name: str) -> None:
    """Samples of zeros tell nothing of it."""
    text, told = BAD_ON_SAMPLES[name]
    path = written(tmp_path, NETWORK.format(text))
    foreign.check(Model(path), SHAPE, CLASSES)
    foreign.check_samples(Model(path), [torch.zeros(4, *SHAPE)], SHAPE, CLASSES)
    with pytest.raises(ConfigError) as caught:
        foreign.check_samples(Model(path), [torch.ones(4, *SHAPE)], SHAPE, CLASSES)
    line = str(caught.value)
    assert line.startswith(f"model.name = {path}: ") and told in line and "\n" not in line


def test_it_is_tried_on_the_samples_before_the_first_round(tmp_path: Path) -> None:
    name = written(tmp_path, NETWORK.format(BAD_ON_SAMPLES["grows"][0]))
    with pytest.raises(UserError, match="parameters change with its input"):
        plain.here(*KEYS, "--model.name", name, "--out", tmp_path / "out")


def test_an_exception_amid_the_training_is_one_line(tmp_path: Path) -> None:
    text = NETWORK.format("self.calls = getattr(self, 'calls', 0) + 1\n            assert self.calls < 9")
    name = written(tmp_path, text)
    ended = run(*KEYS, "--model.name", name, "--out", tmp_path / "out", ranks=3)
    assert ended.returncode == 1
    assert f"model.name = {name}: line 12: AssertionError: " in one_line(ended.stderr)


def test_no_such_file(tmp_path: Path) -> None:
    assert "No such file" in refused(f"{tmp_path}/absent.py:build")


def test_before_anything_is_trained(tmp_path: Path) -> None:
    """By the whole program, as a line of the kind that a name unknown to it gets."""
    with pytest.raises(ConfigError, match="gave int; valid is a torch.nn.Module"):
        plain.here(*KEYS, "--model.name", written(tmp_path, BAD["type"][0]), "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"model.name = vgg: valid is one of linear.*, or FILE\.py:NAME$"):
        plain.here(*KEYS, "--model.name", "vgg")


# ---- what is asked of it before it trains


def test_hidden_is_given_where_it_is_asked_for(tmp_path: Path) -> None:
    name = written(tmp_path, "def build(s, c, hidden): return nn.Linear(hidden, c)")
    assert models.build(Model(name, hidden=17), SHAPE, CLASSES, 0).in_features == 17


def test_weights_follow_from_the_seed_and_no_cache_is_left(tmp_path: Path) -> None:
    name = written(tmp_path, "def build(s, c): return nn.Linear(3, c)")
    one, again, other = (models.build(Model(name), SHAPE, CLASSES, seed).weight for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_what_lies_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_own_model.py").write_text("WIDTH = 23\n")
    name = written(tmp_path, "import beside_own_model as b\ndef build(s, c): return nn.Linear(b.WIDTH, c)")
    assert models.build(Model(name), SHAPE, CLASSES, 0).in_features == 23


def test_memory_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same layers as our mlp, so the same estimate."""
    text = "def build(s, c): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, c))"
    monkeypatch.setenv("AMN_CACHE", str(tmp_path))
    fed = prepare(Data(clients=3), 0)
    ours, own = (
        Config(method=fedavg.Options(), model=Model(name, hidden=7))
        for name in ("mlp", written(tmp_path, text))
    )
    each = 64 + 7 + 7 + 10
    assert activations.training(ours, fed) == 4 * 2 * each * 10
    assert activations.training(own, fed) == 4 * 2 * (each + 10) * 10  # the whole's own output, too


def hooked() -> nn.Module:
    found = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    found[1].register_forward_hook(lambda layer, x, y: 2 * y)
    return found


def shared_relu() -> nn.Module:
    """``children`` names the ReLU once, and so hides the last one."""
    relu = nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 4), relu, nn.Linear(4, 3), relu)


def own_forward() -> nn.Module:
    found = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    found.forward = lambda x: -x.flatten(1)[:, :3]  # type: ignore[method-assign]
    return found


def tied() -> nn.Module:
    found = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    found[3].weight = found[1].weight
    return found


def no_bias() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))


@pytest.mark.parametrize("make", [hooked, shared_relu, own_forward, tied, no_bias])
def test_it_is_not_mistaken_for_a_network_that_is_known(make: Any) -> None:
    module = make()
    assert compiled.specification(module, (4,)) is None
    assert not fully_connected(module)


def test_short_names() -> None:
    assert plugin.short("a/b.c/own.py:Mine") == "own-Mine"
    assert plugin.short("fedavg") == "fedavg"
    assert [plugin.is_file(n) for n in ("x.py:f", "x.py", "x.h5:f", "x.py:", "x.py:a b")] == [True] + 4 * [
        False
    ]
