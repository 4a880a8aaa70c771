"""Which engine trains, by configuration, model and device; and that all ranks agree on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from running import REPOSITORY, one_line, result, run

from amn_mpi import engines, models, native, neutral
from amn_mpi.config import Config, Model
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.methods import fedavg

KEYS = ("--data.clients", 4, "--rounds", 2, "--local.epochs", 1, "--progress", "off")
KNOWN = ("linear", "mlp", "cnn", "lenet5", "mlp_bn", "cnn_bn", "lenet5_bn")
needs_native = pytest.mark.skipif(not native.available(), reason=f"no compiled engine: {native.reason()}")


def chosen(engine: Any, name: str, device: str = "cpu", precision: Any = "fp32") -> str:
    config = Config(method=fedavg.Options(), engine=engine, model=Model(name), precision=precision)
    module = models.build(config.model, (1, 28, 28), 10, 0)
    return engines.choose(config, module, (1, 28, 28), torch.device(device))


@pytest.mark.parametrize("name", models.MODELS)
def test_auto_follows_from_model_and_device(name: str) -> None:
    assert chosen("auto", name) == ("compiled" if name in KNOWN else "torch")
    assert chosen("torch", name) == "torch"
    assert chosen("auto", name, "cuda") == ("torch" if name.endswith("_bn") else "batched")


def test_a_model_that_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="engine = batched.*model.name = cnn_bn.*are auto, compiled, torch"):
        chosen("batched", "cnn_bn")
    with pytest.raises(ConfigError, match="engine = compiled.*resnet8.*valid are auto, batched, torch"):
        chosen("compiled", "resnet8")


def test_batch_normalisation_is_compiled_in_float32_alone() -> None:
    assert chosen("auto", "lenet5", precision="bf16") == "compiled" == chosen("auto", "lenet5_bn")
    assert chosen("auto", "lenet5_bn", precision="bf16") == "torch"
    with pytest.raises(ConfigError, match="compiled: .*bf16 with batch.*are auto, torch, or --precision"):
        chosen("compiled", "lenet5_bn", precision="bf16")


LACKING = ("engine = auto", "has no compiled engine (AMN_NATIVE is off)", "--engine torch")


@pytest.fixture
def lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine without the compiled engine, in this process and in others."""
    env = {"AMN_CACHE": str(tmp_path / "cache"), "AMN_NATIVE": "off"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


def test_no_compiled_engine_here(tmp_path: Path, lacking: dict[str, str]) -> None:
    """Without it one runs by ``--engine torch``."""
    with pytest.raises(ConfigError) as caught:
        plain.here(*KEYS, "--out", tmp_path / "out")
    assert [words for words in LACKING if words not in str(caught.value)] == []
    plain.here(*KEYS, "--engine", "torch", "--out", tmp_path / "out")
    assert result(tmp_path / "out")["engine"] == "cpu-torch"


def test_no_compiled_engine_on_three_ranks(tmp_path: Path, lacking: dict[str, str]) -> None:
    """They end with one line."""
    done = run(*KEYS, "--out", tmp_path / "out", ranks=3, env=lacking)
    assert done.returncode == 2
    line = one_line(done.stderr)
    assert [words for words in LACKING if words not in line] == []
    done = run(*KEYS, "--engine", "torch", "--out", tmp_path / "out", ranks=3, env=lacking)
    assert (done.returncode, done.stderr) == (0, "")
    assert result(tmp_path / "out")["engine"] == "cpu-torch"


@needs_native
def test_all_ranks_take_what_the_oldest_processor_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = REPOSITORY / "tests" / "scripts" / "instructions.py"
    env = {"AMN_CACHE": tmp_path / "cache"}
    done = run(*KEYS, "--out", tmp_path / "mixed", ranks=3, script=script, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    for name, value in {**env, "AMN_NATIVE": "generic"}.items():
        monkeypatch.setenv(name, str(value))
    plain.here(*KEYS, "--out", tmp_path / "old")
    mixed, old = (result(tmp_path / name) for name in ("mixed", "old"))
    assert mixed["engine"] == old["engine"] == "cpu-compiled"
    assert mixed["versions"]["instructions"] == old["versions"]["instructions"] == "generic"
    assert mixed["models_sha256"] == old["models_sha256"]


@needs_native
def test_a_run_goes_on_with_its_own_engine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMN_CACHE", str(tmp_path / "cache"))
    what = (*KEYS, "--out", tmp_path / "out", "--resume", "auto", "--checkpoint.every", 1)
    plain.here(*what)
    with pytest.raises(UserError) as caught:
        plain.here(*what, "--rounds", 3, "--engine", "torch")
    assert caught.value.status == 1
    assert "was made with another engine (cpu-compiled, now cpu-torch)" in str(caught.value)


def test_a_method_whose_results_have_changed_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMN_CACHE", str(tmp_path / "cache"))
    what = (*KEYS, "--method.name", "ditto", "--engine", "torch", "--resume", "auto", "--out", tmp_path)
    plain.here(*what)
    plain.here(*what, "--rounds", 3)
    assert "bits may differ" not in capsys.readouterr().err
    monkeypatch.setitem(neutral.REVISED, "ditto", 7)
    plain.here(*what, "--rounds", 4)
    assert "was made with revision 0.0, now 0.7: bits may differ" in one_line(capsys.readouterr().err)


@needs_native
def test_both_engines_reach_the_same_models(tmp_path: Path) -> None:
    """Five rounds of FedAvg, to rounding."""
    found = []
    for engine in ("compiled", "torch"):
        config = dataclasses.replace(
            plain.start(tmp_path, fedavg.Options(), model=Model("mlp", hidden=6)).config, engine=engine
        )
        this = plain.begin(config)
        for _ in range(5):
            plain.one_round(this)
        assert this.engine.name == engine
        found.append(this.server["model"].numpy().copy())
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(found[0], np.zeros_like(found[0]))
