"""Every command in the documentation is run or checked.

A block without a language holds commands, one a line; any other block has a language. What a long command
would do is cut down: 3 ranks, one round, one scenario, and a forecast in place of a comparison.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import COMMANDS, FASHION, TEXTS, Command, blocks, of_kind
from ready import run_each
from running import REPOSITORY, environment, result, run
from test_data_natural import client_files, held, leaf, owned, pfllib

from amn_mpi import kept
from amn_mpi.config import Data
from amn_mpi.data import load_clients, prepare

# A user's own data, as docs/own.md calls it.
OWN_DATA = {"hospitals": client_files, "PFLlib/dataset/MNIST": pfllib, "leaf/data/femnist/data": leaf}
ENDS_AT_ONCE = {"--help", "--version", "--print_config"}


# ---- runs of amn_mpi.main, in one start of the ranks


def missing(words: tuple[str, ...]) -> str:
    """Why a command cannot be tried here, else empty."""
    if {"fashion_mnist", "quick", "quick_tune"} & set(words) and not FASHION.is_dir():
        return "needs Debian's package dataset-fashion-mnist"
    if "cifar10" in words and not (Path(os.environ.get("AMN_DATA", "")) / "cifar-10-batches-bin").is_dir():
        return "no cifar-10-batches-bin in $AMN_DATA"
    return ""


def placed(words: tuple[str, ...], folder: Path) -> list[str]:
    """With this test's folders in place of a user's."""
    given = os.environ.get("AMN_DATA", "DIR")
    known = {"my.yaml": str(folder / "my.yaml"), "DIR": given, "$DATA": given}
    known |= {name: str(folder / name) for name in ("tokens.npz", *OWN_DATA)}
    changed = [known.get(word, word).replace("$SCRATCH", str(folder)) for word in words if word != "..."]
    return [re.sub(r"^runs/", f"{folder}/runs/", word) for word in changed]


def shortened(command: Command, folder: Path) -> list[str]:
    words = placed(command.words, folder)
    if "--dry_run" in words:
        return words
    words += ["--rounds", "1", "--local.epochs", "1", "--progress", "off", "--evaluate.batch_size", "200"]
    return words if "--out" in words else [*words, "--out", str(out(command, folder))]


def out(command: Command, folder: Path) -> Path:
    words = placed(command.words, folder)
    if "--out" in words:
        return Path(words[words.index("--out") + 1])
    return folder / "runs" / str(COMMANDS.index(command))


def trains(command: Command) -> bool:
    return command.kind == "amn_mpi.main" and not ENDS_AT_ONCE & set(command.words)


def makes_data(command: Command) -> bool:
    return command.kind == "script" and command.words[-1].endswith(".npz")


def alone(command: Command) -> bool:
    return trains(command) and not command.ranks and "--dry_run" not in command.words


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all that train have run on 3 ranks, beside two runs that others look into."""
    folder = tmp_path_factory.mktemp("docs")
    (own,) = [block for language, block in blocks(TEXTS["README.md"]) if language == "yaml"]
    (folder / "my.yaml").write_text(own)
    for name, make in OWN_DATA.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make(folder / name, held())
    for one in filter(makes_data, COMMANDS):
        subprocess.run([sys.executable, *placed(one.words, folder)], cwd=REPOSITORY, check=True)
    together = [one for one in COMMANDS if trains(one) and not alone(one) and not missing(one.words)]
    # What goes on in a folder comes a second time, as its user would give it.
    again = [one for one in together if "--resume" in one.words]
    lines = [shortened(one, folder) for one in (*together, *again)]
    for seed, name in enumerate(("RUN", "OTHER")):
        lines.append(["--rounds", 1, "--seed", seed, "--out", folder / "runs" / name, "--progress", "off"])
    alone_too = ["--method.name", "local", "--out", folder / "runs" / "ALONE", "--progress", "off"]
    lines.append(["--rounds", 1, *alone_too])
    shown = run_each(lines, folder, ranks=3)
    assert shown.returncode == 0, shown.stderr
    forecasts = sum("--dry_run" in one.words for one in together)
    assert forecasts and shown.stdout.count("what each rank needs") == forecasts
    for name, copy in (("RUN", "A"), ("OTHER", "B"), ("RUN", "quick/iid/amn/seed0")):
        shutil.copytree(folder / "runs" / name, folder / "runs" / copy)
    cell = folder / "runs" / "quick/iid/amn/seed0"
    found = {**result(cell), "cell": {"scenario": "iid", "label": "amn", "seed": 0, "trial": -1}}
    (cell / "result.json").write_text(json.dumps(found))
    return folder


def check_main(command: Command, folder: Path) -> None:
    if reason := missing(command.words):
        pytest.skip(reason)
    if not trains(command):
        assert "--data.clients" in run(*command.words).stdout
        return
    if alone(command):
        shown = run(*shortened(command, folder), env={"AMN_CACHE": folder / "cache"})
        assert shown.returncode == 0, shown.stderr
    if "--dry_run" not in command.words:
        assert result(out(command, folder))["rounds"] == 1


def program(folder: Path, module: str, *words: str) -> str:
    """Standard output of ``python -m module words`` in the folder."""
    shown = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=environment({"AMN_CACHE": folder / "cache"}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def check_inspect(command: Command, folder: Path) -> None:
    """Both runs differ in their seeds."""
    words = placed(command.words, folder)
    shown = program(folder, command.kind, *words)
    assert "sound" in shown and (len(words) == 1 or "seed" in shown)


def check_report(command: Command, folder: Path) -> None:
    assert "report.html" in program(folder, command.kind, *placed(command.words, folder))


def check_join(command: Command, folder: Path) -> None:
    """A newcomer whose images are noise."""
    draw = np.random.default_rng(0)
    np.savez(
        folder / "newcomer.npz", x=draw.integers(0, 17, (40, 8, 8)).astype(np.uint8), y=np.arange(40) % 10
    )
    assert "listens most to clients" in program(folder, command.kind, *placed(command.words, folder))
    if "--out" in command.words:
        out = command.words[command.words.index("--out") + 1]
        assert "sound" in program(folder, "amn_mpi.inspect", f"{out}/models.h5")


def check_data(command: Command, folder: Path) -> None:
    if reason := missing(["--config", *command.words[1:2]] if command.words[0] == "show" else []):
        pytest.skip(reason)
    if command.words[0] == "fetch":  # tests/test_data_cli.py has it from a server; here there is none
        with pytest.raises(AssertionError, match="cannot reach 127.0.0.1"):
            program(folder, command.kind, *command.words, "--from", "http://127.0.0.1:9/")
        return
    shown = program(folder, command.kind, *command.words)
    assert ("digits" in shown) or ("client" in shown)


def check_compare(command: Command, folder: Path) -> None:
    words = placed(command.words, folder)
    if Path(words[0]).is_dir():
        assert "amn" in program(folder, command.kind, *words)
        return
    if command.words[0] == "my_comparison.yaml":
        check_own_comparison(words, folder)
        return
    if reason := missing(command.words):
        pytest.skip(reason)
    if "--known" in words:  # what another command of the page has copied there
        table = folder / words[words.index("--known") + 1]
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(kept.text([]))
    methods = [] if "--methods" in words else ["--methods", "amn"]
    cut = [*words, *methods, "--scenarios", "label_skew", "--seeds", "0", "--dry_run"]
    assert "to do" in program(folder, command.kind, *cut)


def check_own_comparison(words: list[str], folder: Path) -> None:
    """The page's file on data of five clients; one round, the first and the last of its methods."""
    (text,) = [block for _, block in blocks(TEXTS["docs/comparing.md"]) if "few: {" in block]
    table = owned(folder / "table.npz", held(), [3, 5, 7, 100, 2000], False)
    own = folder / words[0]
    text = text.replace("table.npz", str(table)).replace("examples/", f"{REPOSITORY}/examples/")
    own.write_text(text)
    cut = ["--rounds", "1", "--seeds", "0", "--methods", "fedavg_ft,blend"]
    assert "tables in" in program(folder, "amn_mpi.compare", str(own), *words[1:], *cut)
    found = json.loads((folder / "runs/mine/few/blend/seed0/result.json").read_text())
    assert found["config"]["method"]["share"] == 0.3 and found["clients"] == 4
    assert (folder / "runs/mine/report.html").is_file()


# ---- what is checked without being carried out


def check_make(command: Command, folder: Path) -> None:
    shown = subprocess.run(["make", "-n", *command.words], cwd=REPOSITORY, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout, shown.stderr


def check_sbatch(command: Command, folder: Path) -> None:
    script, *rest = [word for word in command.words if not word.startswith("-")]
    subprocess.run(["bash", "-n", REPOSITORY / script], check=True)
    configs = [word for word in rest if word.endswith(".yaml")]
    assert all((REPOSITORY / name).exists() for name in configs)


def check_pip(command: Command, folder: Path) -> None:
    """``pip install -c constraints.txt -e .`` with extras that there are."""
    assert command.words[0] == "install"
    assert command.words[1] == "-c" and (REPOSITORY / command.words[2]).exists()
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert command.words[3] == "-e"
    assert (what := re.fullmatch(r"\.(?:\[([\w,]+)\])?", command.words[4]))
    assert set(filter(None, (what[1] or "").split(","))) <= set(setup["options.extras_require"])


def check_source(command: Command, folder: Path) -> None:
    """An environment that a command beside it makes."""
    assert command.words[0].endswith("/bin/activate")
    name = command.words[0].removesuffix("/bin/activate")
    made = {one.words[0] for one in of_kind("venv")} | {".venv"}
    assert name in made


def check_script(command: Command, folder: Path) -> None:
    """Only what makes data for other commands is run."""
    if makes_data(command):
        assert Path(placed(command.words, folder)[-1]).exists()
    else:
        check_existing(command, folder)


def check_existing(command: Command, folder: Path) -> None:
    """A script or test files that there are; its options are looked at in ``test_readme.py``."""
    files = [word for word in command.words if not word.startswith("-")]
    assert files and all((REPOSITORY / name).exists() for name in files)


def check_module(command: Command, folder: Path) -> None:
    """It would change this very environment."""
    assert importlib.util.find_spec(command.kind) is not None


def check_copy(command: Command, folder: Path) -> None:
    """Something a run has written takes the place of a file that there is."""
    assert command.words[0].startswith("runs/") and (REPOSITORY / command.words[1]).exists()


def check_load(command: Command, folder: Path) -> None:
    """The names are a site's own."""
    assert command.words[0] == "load" and len(command.words) > 1


def check_tensorboard(command: Command, folder: Path) -> None:
    """What the page would show, in words instead."""
    words = placed(command.words, folder)
    found = beside(folder, "tensorboard", "--inspect", *words)
    assert "accuracy/fitted" in found and "attention" in found


def check_wandb(command: Command, folder: Path) -> None:
    """What would be uploaded."""
    action, path = placed(command.words, folder)
    assert "Would sync 1 run" in beside(folder, "wandb", action, "--dry-run", path)


def beside(folder: Path, name: str, *words: str) -> str:
    """What a program prints that was installed beside this Python."""
    found = Path(sys.executable).parent / name
    shown = subprocess.run([found, *words], cwd=folder, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout + shown.stderr


KINDS: dict[str, Callable[[Command, Path], None]] = {
    "amn_mpi.main": check_main,
    "amn_mpi.compare": check_compare,
    "amn_mpi.inspect": check_inspect,
    "amn_mpi.report": check_report,
    "amn_mpi.data": check_data,
    "amn_mpi.join": check_join,
    "amn_mpi.native": check_module,
    "tensorboard": check_tensorboard,
    "wandb": check_wandb,
    "venv": check_module,
    "pytest": check_existing,
    "script": check_script,
    "make": check_make,
    "sbatch": check_sbatch,
    "pip": check_pip,
    "source": check_source,
    "cp": check_copy,
    "module": check_load,
}


def test_every_command_is_of_a_known_kind() -> None:
    """Give a new one a way to be run, above; what is no command belongs in a block with a language."""
    assert [str(one) for one in COMMANDS if one.kind not in KINDS] == []
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.kind in KINDS], ids=str)
def test_command(command: Command, ran: Path) -> None:
    KINDS[command.kind](command, ran)


def test_a_table_is_standardised_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its block of Python, on columns of very different scale with holes."""
    (block,) = [text for language, text in blocks(TEXTS["docs/own.md"]) if "table.npz" in text]
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 4)) * [1, 1e5, 1e-3, 0] + [0, 1e6, 0, 7]
    x[3, 1] = np.nan
    known = {"np": np, "x": x, "y": np.arange(60) % 2, "owner": np.arange(60) // 20}
    monkeypatch.chdir(tmp_path)
    exec(block, {**known, "train": np.arange(60) % 4 > 0})  # noqa: S102  # our own page
    fed = prepare(Data(name="table.npz", cache=str(tmp_path / "cache")), 0)
    held = np.concatenate([x for c in load_clients(fed, range(3)) for x in (c.x_train, c.x_test)])
    assert fed.clients == 3 and np.isfinite(held).all()
    np.testing.assert_allclose(held.std(0), [1, 1, 1, 0], atol=0.25)


def test_the_page_on_methods_shows_the_example_whole() -> None:
    ((_, shown),) = [one for one in blocks(TEXTS["docs/writing-a-method.md"]) if one[0] == "python"]
    example = (REPOSITORY / "examples" / "own_blend.py").read_text()
    assert example.endswith(shown) and example.count("@dataclass") == shown.count("@dataclass") == 1


def test_the_same_on_another_number_of_ranks(ran: Path) -> None:
    """The two commands of the page on reproducibility, after they have run on 1 and 3 ranks."""
    pair = [one for language, block in blocks(TEXTS["docs/reproducibility.md"]) for one in block.splitlines()]
    assert len(pair) == 2 and pair[1].startswith("mpirun")
    assert len({result(ran / "runs" / name)["models_sha256"] for name in ("alone", "five")}) == 1


def test_the_page_on_watching_shows_python_that_runs(tmp_path: Path) -> None:
    own, script = [block for language, block in blocks(TEXTS["docs/watching.md"]) if language == "python"]
    assert own in (REPOSITORY / "examples" / "own_callback.py").read_text()
    (tmp_path / "script.py").write_text(script)
    env = {"AMN_CACHE": tmp_path / "cache"}
    shown = run(ranks=3, script=tmp_path / "script.py", cwd=tmp_path, env=env)
    assert shown.returncode == 0, shown.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"{result(folder)['mean_accuracy']:.2f} %, worst tenth" in shown.stdout.splitlines()[-1]
