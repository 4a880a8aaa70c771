"""What README.md says is there."""

from __future__ import annotations

import re

import pytest
from running import REPOSITORY

from amn_mpi import cli, methods
from amn_mpi.config import all_keys

README = (REPOSITORY / "README.md").read_text()
# Options of other programs, in the README's commands for clusters and pip.
FOREIGN = {"ntasks-per-node", "mpi"}
FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|yaml|toml|cfg|md|txt|sh|sbatch))`")
LEFT_BY_A_RUN = {"config.yaml"}


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"@[A-Z_0-9]+@", README) == []
    assert re.findall(r"\b(?:TODO|TBD|FIXME|XXX)\b", README) == []


def test_every_option_exists() -> None:
    known = {name for method in methods.METHODS for name in all_keys(methods.options(method))}
    known |= set(cli.SWITCHES) | FOREIGN
    named = set(re.findall(r"(?<![\w-])--([a-z][\w.-]*[\w])", README))
    assert len(named) > 20
    assert named - known == set()


def test_every_file_exists() -> None:
    named = set(FILE.findall(README)) - LEFT_BY_A_RUN
    assert {"amn_mpi/rounds.py", "tests/test_memory.py"} <= named
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_every_config_exists() -> None:
    given = set(re.findall(r"--config (\w+)(?![\w.])", README))
    assert "fashion_mnist" in given
    assert [name for name in sorted(given) if not (REPOSITORY / "configs" / f"{name}.yaml").exists()] == []


@pytest.mark.parametrize("key, choices", [("method.name", methods.METHODS), ("model.name", None)])
def test_every_choice_is_listed(key: str, choices: object) -> None:
    """The table of keys lists what the key accepts, no more and no less."""
    cell = next(line for line in README.splitlines() if line.startswith(f"| `--{key}`")).split("|")[2]
    if choices is None:
        valid = all_keys(methods.options("amn"))[key].valid()
        choices = re.findall(r"\w+", valid.removeprefix("one of "))
    assert re.findall(r"`(\w+)`", cell) == list(choices)  # type: ignore[call-overload]
