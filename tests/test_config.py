"""Configuration: files, command line, what wins over what. Bad input is in test_bad_input."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import REPOSITORY, run

from amn_mpi import cli, methods
from amn_mpi.config import Config, all_keys, leaves
from amn_mpi.errors import ConfigError

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


def parsed(*words: str) -> Config:
    return cli.parse(words)[0]


def test_default_yaml_says_what_a_bare_call_does() -> None:
    assert parsed("--config", "default") == parsed()
    written = yaml.safe_load((REPOSITORY / "configs" / "default.yaml").read_text())
    assert written == parsed().as_dict()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_parses_by_name_and_by_path(path: Path) -> None:
    assert parsed("--config", path.stem) == parsed("--config", str(path))
    for key, value in leaves(yaml.safe_load(path.read_text())).items():
        found = parsed("--config", path.stem).as_dict()
        for part in key.split("."):
            found = found[part]
        assert found == value, key


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_has_a_config(name: str) -> None:
    assert parsed("--config", name).method == methods.options(name)()


def test_the_command_line_wins_over_files_and_later_files_over_earlier(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("rounds: 3\nlocal: {lr: 0.5, epochs: 2}\n")
    second.write_text("rounds: 4\nlocal: {lr: 1e-3}\ndata:\n")
    found = parsed("--rounds=7", "--config", str(first), "--config", str(second))
    assert (found.rounds, found.local.lr, found.local.epochs) == (7, 1e-3, 2)
    assert parsed("--config", str(first), "--config", str(second)).rounds == 4


def test_options_of_another_method_in_a_file_do_not_apply(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("method: {name: amn, tau: 3.0}\n")
    assert parsed("--config", str(config)).method.tau == 3.0
    assert parsed("--config", str(config), "--method.name", "local").method.name == "local"
    config.write_text("method: {name: amn, tua: 3.0}\n")
    with pytest.raises(ConfigError, match=r"method.tua: unknown key .*did you mean method.tau"):
        parsed("--config", str(config))


def test_print_config_round_trips(tmp_path: Path) -> None:
    with pytest.raises(cli.Printed) as answer:
        parsed("--print_config", "--config", "cifar10", "--method.tau", "2.5", "--seed", "9")
    copy = tmp_path / "copy.yaml"
    copy.write_text(str(answer.value))
    again = parsed("--config", str(copy))
    assert again == parsed("--config", "cifar10", "--method.tau", "2.5", "--seed", "9")
    assert (again.seed, again.method.tau, again.data.name) == (9, 2.5, "cifar10")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data: {clients: 4}\nrounds: 3\ndata: {labels: iid}\n", "data: stands twice, in lines 1 and 3"),
        ("data: {clients: 4, labels: iid, clients: 5}\n", "clients: stands twice, in lines 1 and 1"),
        ("data: &one {labels: *one}\n", "line 1: a section holds itself"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, told: str) -> None:
    """YAML takes the last and says nothing."""
    config = tmp_path / "a.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        parsed("--config", str(config))
    assert f"{config}: {told}" in str(refusal.value)
    config.write_text("local: &same {epochs: 2}\nmodel: {hidden: 9}\n")
    assert parsed("--config", str(config)).local.epochs == 2


@pytest.mark.parametrize("word", ["--dry_run=false", "--print_config=", "--version=1", "--help=rounds"])
def test_a_switch_takes_no_value(word: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parsed(word)
    assert str(refusal.value) == f"{word}: takes no value; valid is {word.partition('=')[0]}"


def test_help_has_one_line_for_each_key() -> None:
    with pytest.raises(cli.Printed) as answer:
        parsed("--help", "--method.name", "amn")
    lines = str(answer.value).splitlines()
    for name, key in all_keys(methods.options("amn")).items():
        mine = [line for line in lines if line.strip().startswith(f"--{name} ")]
        assert len(mine) == 1 and key.help in mine[0] and key.valid() in mine[0]
        assert key.help, name


def test_every_default_is_valid_and_configs_are_frozen() -> None:
    for method in methods.METHODS:
        for key in all_keys(methods.options(method)).values():
            assert key.accepts(key.default), key.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed().rounds = 3  # type: ignore[misc]


def test_limits_are_told_apart_at_their_ends() -> None:
    for words in (("--cohort", "1"), ("--local.momentum", "0"), ("--rounds", "1")):
        parsed(*words)
    for words in (("--cohort", "0"), ("--cohort", "1.01"), ("--local.momentum", "1"), ("--rounds", "0")):
        with pytest.raises(ConfigError, match=f"{words[0][2:]} = .*: valid is"):
            parsed(*words)


def test_a_refused_value_is_told_with_the_file_that_it_is_from(tmp_path: Path) -> None:
    """The last of the files that have the key; none if the command line has it."""
    for name, text in (("one", "local: {lr: -1}"), ("two", "local: {lr: fast}"), ("three", "rounds: 3")):
        (tmp_path / f"{name}.yaml").write_text(text)
    one, two, three = (("--config", str(tmp_path / f"{name}.yaml")) for name in ("one", "two", "three"))
    for words, begin in (
        ((*two, *one, *three), f"{one[1]}: local.lr = -1"),
        ((*one, *two, *three), f"{two[1]}: local.lr = fast"),
        ((*one, "--local.lr", "-2"), "local.lr = -2"),
        (("--local.lr", "slow", *three), "local.lr = slow"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(begin)}[.0]*: valid is "):
            parsed(*words)
    assert parsed(*one, "--local.lr", "0.5").local.lr == 0.5


def test_configuration_needs_neither_torch_nor_mpi() -> None:
    heavy = ("torch", "mpi4py", "h5py")
    code = "import sys; from amn_mpi import cli; cli.parse([]); "
    code += f"print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]", done.stderr


def hasty_compiler(folder: Path) -> dict[str, str]:
    """$CC that does not optimise, which would take 15 s; nothing where no ``cc`` is."""
    if shutil.which("cc") is None:
        return {}
    (folder / "hasty").write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    (folder / "hasty").chmod(0o755)
    return {"CC": str(folder / "hasty")}


def test_installed_outside_the_checkout(tmp_path: Path) -> None:
    """A wheel holds the digits and the configs, found by name from any folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    site = tmp_path / "site"
    made = subprocess.run(
        [*pip, "--target", str(site), str(REPOSITORY)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **hasty_compiler(tmp_path)},
    )
    if made.returncode and "setuptools" in made.stderr:
        pytest.skip("no package index within reach to build with")
    assert made.returncode == 0, made.stderr
    home = tmp_path / "home"
    home.mkdir()
    env = {"PYTHONPATH": site, "AMN_CACHE": tmp_path / "cache"}
    program = tmp_path / "go.py"
    program.write_text(
        f"import sys; sys.path[:] = [p for p in sys.path if p != {str(REPOSITORY)!r}]\n"
        "import amn_mpi, amn_mpi.main\nprint(amn_mpi.__file__, flush=True)\namn_mpi.main.main(sys.argv[1:])\n"
    )
    args = ("--config", "fedavg", "--rounds", 1, "--progress", "off")
    done = run(*args, script=program, env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert list(home.glob("runs/*-fedavg-digits/result.json"))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("out:", "out", ""),
        ("out: 2020-01-01", "out", "2020-01-01"),
        ("progress: off", "progress", "off"),
        ("baselines: [local, fedavg]", "baselines", "local,fedavg"),
    ],
)
def test_what_yaml_makes_of_words(tmp_path: Path, text: str, key: str, value: str) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(text)
    assert getattr(parsed("--config", str(config)), key) == value
