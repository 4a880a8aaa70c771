"""The documentation: every command is run or checked, links lead somewhere, quoted errors are the code's.

A block without a language holds commands, one a line; any other block has a language. What a long command
would do is cut down: 3 ranks, one round, one scenario, and a forecast in place of a comparison.
"""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from running import REPOSITORY, environment, result, run, run_each

from amn_mpi import budget, cli, data, forecast

PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")] + sorted(
    REPOSITORY.glob("docs/*.md")
)
TEXTS = {str(path.relative_to(REPOSITORY)): path.read_text() for path in PAGES}
FASHION = Path("/usr/share/datasets/fashion-mnist")
ENDS_AT_ONCE = {"--help", "--version", "--print_config"}


@dataclass(frozen=True)
class Command:
    """A line of a block, without its launcher.

    Attributes:
        kind: what checks it: a module of this program, or the program itself.
        ranks: what the launcher was told, 0 without one.
    """

    kind: str
    words: tuple[str, ...]
    ranks: int = 0

    def __str__(self) -> str:
        return " ".join([self.kind, *self.words])


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[Command]:
    """All that stand in blocks, each once."""
    found = {}
    for text in TEXTS.values():
        for language, block in blocks(text):
            for line in block.replace("\\\n", " ").splitlines() if not language else ():
                words = shlex.split(line, comments=True)
                for part in " ".join(map(shlex.quote, words)).split(" '&&' ") if words else ():
                    found[parsed(shlex.split(part))] = None
    return list(found)


def parsed(words: list[str]) -> Command:
    ranks = 0
    if words[0] in ("mpirun", "srun"):
        ranks = int(words[words.index("-n") + 1]) if "-n" in words else 3
        words = words[words.index("python") :]
    if words[0] != "python":
        return Command({".": "source"}.get(words[0], words[0]), tuple(words[1:]))
    if words[1] == "-m":
        return Command(words[2], tuple(words[3:]), ranks)
    return Command("script", tuple(words[1:]), ranks)


COMMANDS = commands()


def of_kind(kind: str) -> list[Command]:
    return [one for one in COMMANDS if one.kind == kind]


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


def alone(command: Command) -> bool:
    return trains(command) and not command.ranks and "--dry_run" not in command.words


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all that train have run on 3 ranks, beside two runs that others look into."""
    folder = tmp_path_factory.mktemp("docs")
    (own,) = [block for language, block in blocks(TEXTS["README.md"]) if language == "yaml"]
    (folder / "my.yaml").write_text(own)
    together = [one for one in COMMANDS if trains(one) and not alone(one) and not missing(one.words)]
    # What goes on in a folder comes a second time, as its user would give it.
    again = [one for one in together if "--resume" in one.words]
    lines = [shortened(one, folder) for one in (*together, *again)]
    for seed, name in enumerate(("RUN", "OTHER")):
        lines.append(["--rounds", 1, "--seed", seed, "--out", folder / "runs" / name, "--progress", "off"])
    shown = run_each(lines, folder, ranks=3)
    assert shown.returncode == 0, shown.stderr
    forecasts = sum("--dry_run" in one.words for one in together)
    assert forecasts and shown.stdout.count("what each rank needs") == forecasts
    for name, copy in (("RUN", "A"), ("OTHER", "B")):
        shutil.copytree(folder / "runs" / name, folder / "runs" / copy)
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


def check_compare(command: Command, folder: Path) -> None:
    words = placed(command.words, folder)
    if Path(words[0]).is_dir():
        assert "amn" in program(folder, command.kind, *words)
        return
    if reason := missing(command.words):
        pytest.skip(reason)
    methods = [] if "--methods" in words else ["--methods", "amn"]
    cut = [*words, *methods, "--scenarios", "label_skew", "--seeds", "0", "--dry_run"]
    assert "to do" in program(folder, command.kind, *cut)


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
    """``pip install -c constraints.txt .`` with extras that there are."""
    assert command.words[0] == "install"
    assert command.words[1] == "-c" and (REPOSITORY / command.words[2]).exists()
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert (what := re.fullmatch(r"\.(?:\[([\w,]+)\])?", command.words[3]))
    assert set(filter(None, (what[1] or "").split(","))) <= set(setup["options.extras_require"])


def check_source(command: Command, folder: Path) -> None:
    """An environment that a command beside it makes."""
    assert command.words[0].endswith("/bin/activate")
    name = command.words[0].removesuffix("/bin/activate")
    made = {one.words[0] for one in of_kind("venv")} | {".venv"}
    assert name in made


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


KINDS: dict[str, Callable[[Command, Path], None]] = {
    "amn_mpi.main": check_main,
    "amn_mpi.compare": check_compare,
    "amn_mpi.inspect": check_inspect,
    "amn_mpi.native": check_module,
    "venv": check_module,
    "pytest": check_existing,
    "script": check_existing,
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


def test_the_same_on_another_number_of_ranks(ran: Path) -> None:
    """The two commands of the page on reproducibility, after they have run on 1 and 3 ranks."""
    pair = [one for language, block in blocks(TEXTS["docs/reproducibility.md"]) for one in block.splitlines()]
    assert len(pair) == 2 and pair[1].startswith("mpirun")
    assert len({result(ran / "runs" / name)["models_sha256"] for name in ("alone", "five")}) == 1


SIZES = re.findall(r"^\| (\d+) \| ([\d,]+) \|(.* MB \|)$", TEXTS["docs/clusters.md"], re.MULTILINE)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_sizes_are_those_of_the_forecast() -> None:
    """Each row of the table, by the words of the command below it, and the same rows in docs/wire.md."""
    (command,) = [one for one in of_kind("amn_mpi.main") if {"sharded", "--dry_run"} <= set(one.words)]
    assert len(SIZES) == 6
    for clients, parameters, cells in SIZES:
        told = []
        for server in ("rank0", "sharded"):
            model = "mlp" if parameters == "50,890" else "cnn"
            change = ("--data.clients", clients, "--model.name", model, "--server", server)
            config, _ = cli.parse([*command.words, *change])
            fed = data.describe(config.data, config.seed)
            found = budget.planned(config, fed, command.ranks, budget.layout_of(config, fed))
            rows = forecast.rank_table(found)[1]
            told += [rows[0][5], rows[1][5], *(rows[0][6:8] if server == "rank0" else ())]
        assert [cell.strip() for cell in cells.strip("|").split("|")] == told
        assert f"| {clients} | {parameters} | {told[2]} | {told[3]} |" in TEXTS["docs/wire.md"]


# ---- links, the figure, quoted texts


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


LINKED = {**TEXTS, **{name: (REPOSITORY / name).read_text() for name in ("CHANGELOG.md", "jobs/README.md")}}


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", LINKED[name]):
        file, _, anchor = target.partition("#")
        if ":" in file:
            continue
        path = (REPOSITORY / name).parent / file if file else REPOSITORY / name
        assert path.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)), target


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", TEXTS["README.md"]))
    assert linked >= {name for name in TEXTS if name.startswith("docs/")}


def test_the_figure_names_calls_that_are_made() -> None:
    words = " ".join(ElementTree.parse(REPOSITORY / "docs" / "wire.svg").getroot().itertext())
    called = set(re.findall(r"\bI[a-z]+\b", words)) | set(re.findall(r"`(I[a-z]+)`", TEXTS["docs/wire.md"]))
    assert called >= {"Iscatterv", "Igatherv", "Ibcast", "Ireduce", "Ialltoallv"}
    comm = (REPOSITORY / "amn_mpi" / "comm.py").read_text()
    assert [name for name in called if f".{name}(" not in comm] == []


@cache
def spoken() -> str:
    """All source, with texts that go on in the next line in one piece."""
    source = "\n".join(path.read_text() for path in sorted(REPOSITORY.glob("amn_mpi/**/*.py")))
    return re.sub(r'(?:\\n)?"\s*\n\s*f?"', "", source)


@pytest.mark.parametrize("text", re.findall(r"^### `(.*)`$", TEXTS["docs/faq.md"], re.MULTILINE))
def test_errors_are_quoted_as_they_are(text: str) -> None:
    pieces = [piece for piece in text.split("...") if piece.strip(" (),:;=")]
    assert pieces and [piece for piece in pieces if piece not in spoken()] == []


def test_the_citation_is_of_this_version() -> None:
    import yaml

    from amn_mpi import __version__

    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert (cited["title"], cited["version"], cited["license"]) == ("amn_mpi", __version__, "Apache-2.0")
    (paper,) = cited["references"]
    assert paper["doi"] in (REPOSITORY / "amn_mpi" / "meta.py").read_text()
    assert [one["family-names"] for one in paper["authors"]] == ["Gao", "Wang", "Liu", "Ma"]
