"""What the documentation says beside its commands: links, the figure, sizes, quoted errors, the citation."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from functools import cache

import pytest
from pages import FASHION, TEXTS, of_kind
from running import REPOSITORY

from amn_mpi import budget, cli, data, forecast

SIZES = re.findall(r"^\| (\d+) \| ([\d,]+) \|((?: [^|]+ \|){6})$", TEXTS["docs/clusters.md"], re.MULTILINE)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_sizes_are_those_of_the_forecast() -> None:
    """Each row of the table, by the words of the command below it, and the same rows in docs/wire.md."""
    (command,) = [one for one in of_kind("amn_mpi.main") if {"sharded", "--dry_run"} <= set(one.words)]
    described = cache(data.describe)  # of twelve forecasts only three are of other clients
    assert len(SIZES) == 6
    for clients, parameters, cells in SIZES:
        told = []
        for server in ("rank0", "sharded"):
            model = "mlp" if parameters == "50,890" else "cnn"
            change = ("--data.clients", clients, "--model.name", model, "--server", server)
            config, _ = cli.parse([*command.words, *change])
            fed = described(config.data, config.seed)
            found = budget.planned(config, fed, command.ranks, budget.layout_of(config, fed))
            rows = forecast.rank_table(found)[1]
            told += [rows[0][5], rows[1][5], *(rows[0][6:8] if server == "rank0" else ())]
        assert [cell.strip() for cell in cells.strip("|").split("|")] == told
        assert f"| {clients} | {parameters} | {told[2]} | {told[3]} |" in TEXTS["docs/wire.md"]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of each table, its head first and the line below it left out."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    rows = [[line.strip("|").split("|") for line in table.splitlines()] for table in found]
    return [[[cell.strip() for cell in row] for row in [table[0], *table[2:]]] for table in rows]


def test_the_tables_of_methods_are_those_of_the_kept_results() -> None:
    """README.md has some rows and columns of it, and the anchor beside it is of other runs."""
    kept = tables((REPOSITORY / "docs" / "results" / "quick.md").read_text())[0]
    shown = [table for table in tables(TEXTS["docs/comparing.md"]) if table[0][0] == "method"]
    assert shown[0] == kept and len(kept) == 21
    assert shown[1][0][1:] == ["5", "10", "15", "20", "25", "30", "35", "40", "best"]
    (short,) = [table for table in tables(TEXTS["README.md"]) if table[0][0] == "method"]
    columns = [kept[0].index(name.removesuffix(" of seven")) for name in short[0]]
    rows = {row[0]: [row[k] for k in columns] for row in kept[1:]}
    assert len(short) == 8 and all(row == rows[row[0]] for row in short[1:])


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
