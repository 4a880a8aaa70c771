"""What README.md and docs/*.md say is there."""

from __future__ import annotations

import re

import numpy as np
import pytest
from running import REPOSITORY

from amn_mpi import cli, compare, config, join, methods, models
from amn_mpi.config import all_keys
from amn_mpi.methods.base import Setting
from amn_mpi.params import ParameterLayout

README = (REPOSITORY / "README.md").read_text()
TEXTS = {
    path.name: path.read_text() for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"))
}
EACH = pytest.mark.parametrize("name", sorted(TEXTS))
ALL = "\n".join(TEXTS.values())
# Options of other programs, in commands for clusters and pip, and of the benchmarks.
FOREIGN = {"ntasks-per-node", "mpi", "with-ft", "key"}
FOREIGN |= {"local", "figure", "to", "from"}  # of the report and of amn_mpi.data
FOREIGN |= {"logdir"}  # of TensorBoard
FOREIGN |= {"method.epochs"}  # of the example of an own method
FOREIGN |= {
    name
    for path in (REPOSITORY / "benchmarks").glob("*.py")
    for name in re.findall(r'add_argument\("--([\w-]+)"', path.read_text())
}
FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|yaml|toml|cfg|md|txt|sh|sbatch))`")
LEFT_BY_A_RUN = {"config.yaml", "report.html", "tables.md", "my.yaml"}
ELSEWHERE = {"torch/__init__.py"}
EXERCISE = {"amn_mpi/methods/clustered.py", "configs/clustered.yaml"}
IN_TABLE = re.findall(r"^\| `(\w+)` \|.*\|.*\|.*\|.*\|.*\|$", README, re.MULTILINE)


@EACH
def test_no_placeholder_is_left(name: str) -> None:
    assert re.findall(r"@[A-Z_0-9]+@", TEXTS[name]) == []
    assert re.findall(r"\b(?:TODO|TBD|FIXME|XXX)\b", TEXTS[name]) == []


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--([a-z][\w.-]*[\w])", text))


@EACH
def test_every_option_exists(name: str) -> None:
    known = {name for method in methods.METHODS for name in all_keys(methods.options(method))}
    known |= set(all_keys(methods.options(f"{REPOSITORY / 'examples' / 'own_blend.py'}:Blend")))
    known |= set(cli.SWITCHES) | FOREIGN | {*compare.LISTS, *compare.TEXTS, *join.NUMBERS}
    assert options_in(TEXTS[name]) - known == set()
    assert len(options_in(README)) > 20


@EACH
def test_every_file_exists(name: str) -> None:
    named = set(FILE.findall(TEXTS[name])) - LEFT_BY_A_RUN - EXERCISE - ELSEWHERE
    assert {"amn_mpi/rounds.py", "tests/test_memory.py"} <= set(FILE.findall(ALL))
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_every_config_exists() -> None:
    given = set(re.findall(r"--config (\w+)(?![\w.])", ALL))
    assert "fashion_mnist" in given
    assert [name for name in sorted(given) if not (REPOSITORY / "configs" / f"{name}.yaml").exists()] == []


def test_every_model_is_listed() -> None:
    """The table of keys lists what the key accepts, no more and no less."""
    cell = next(line for line in README.splitlines() if line.startswith("| `--model.name`")).split("|")[2]
    valid = all_keys(methods.options("amn"))["model.name"].valid()
    assert re.findall(r"`(\w+)`", cell) == re.findall(
        r"\w+", valid.removeprefix("one of ").removesuffix(", or FILE.py:NAME")
    )


def test_the_table_of_methods_is_complete() -> None:
    """But for methods that somebody has added: the README is ours."""
    assert len(IN_TABLE) == 20 and set(IN_TABLE) <= set(methods.METHODS)


@pytest.mark.parametrize("name", IN_TABLE)
def test_the_table_of_methods_says_what_each_holds(name: str) -> None:
    """c and s as declared; b and h are the shared part and the head, M and k options, f features."""
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` |"))
    network = models.build(config.Model("mlp_bn" if name == "fedbn" else "mlp"), (1, 28, 28), 10, 0)
    setting = Setting(ParameterLayout.of(network), np.full(32, 100), 0, config.Local())
    method = methods.get(name)(methods.options(name)(), setting)
    known = {"b": method.part.size / setting.layout.size, "h": 650 / 50890, "P": 50890}
    known |= {"M": getattr(method.options, "models", 0), "k": getattr(method.options, "groups", 0)}
    known["f"] = method.features
    told = [re.sub(r"(\d)([bfh k])", r"\1*\2", cell).replace("* ", " ") for cell in row.split("|")[-3:-1]]
    values = tuple(eval(cell, {}, known) for cell in told)  # noqa: S307  # our own table
    assert values == pytest.approx(method.worker_rows())
