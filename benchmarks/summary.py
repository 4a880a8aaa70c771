"""One table of all ratios from the JSON files of ``make bench``: ``python benchmarks/summary.py FOLDER``

Each row has what it is held against, measured in the same run: the plain PyTorch loop, a copy of as many
bytes, sgemm of the same arithmetic, the import of torch. The last two columns hold it against the machine:
the rate of sgemm on one core at that time, and its part of a round of W1 in plain PyTorch (for 32 clients
of the CNN). Prints the table, and writes it to FOLDER/table.md. A part without a file is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from report import markdown, shown

COLUMNS = ("", "measured", "beside it", "took", "ratio", "sgemm, GFLOP/s", "of a plain round of W1")
PARTS = ("steps", "rounds", "exchange", "server", "startup", "cost_model")
Row = tuple[object, ...]


def rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of ``COLUMNS`` from what the parts wrote, by part; all their figures are seconds."""
    rounds = found.get("rounds", {})
    plain_round = rounds.get("W1", {}).get("plain")

    def part_of_round(seconds: float, counts: bool = True) -> str:
        return f"{100 * seconds / plain_round:.3g} %" if plain_round and counts else ""

    def row(what: str, own: float, beside: str, other: float, rate: object, part: str = "") -> Row:
        return (what, spent(own), beside, spent(other), own / other, rate, part)

    for what, f in found.get("steps", {}).items():
        for engine in ("compiled", "compiled in bf16"):
            if engine in f:
                rate = f.get("sgemm_gflops", "")
                yield row(f"a step, {what}, {engine}", f[engine], "plain PyTorch", f["plain"], rate)
    for what, f in rounds.items():
        part = part_of_round(f["seconds"], what.startswith(("W1", "AMN")))
        first = (f"a round, {what}", spent(f["seconds"]), "plain PyTorch, 2 processes", spent(f["plain"]))
        yield (*first, f["ratio"], f["sgemm_gflops"], part)
    rates = found.get("exchange", {}).get("sgemm_gflops", {})
    for ranks, each in found.get("exchange", {}).items():
        for what, f in each.items() if ranks != "sgemm_gflops" else ():
            part = part_of_round(f["seconds"], what.startswith("cnn"))
            yield row(f"{ranks}, {what}", f["seconds"], "copying it", f["memcpy"], rates.get(ranks, ""), part)
    for what, f in found.get("server", {}).items():
        own, other = f["mix"] + f["aggregate"], min(f["sgemm"], f["sgemm again"])
        part = part_of_round(own, what == "cnn, 32 clients")
        rate = f.get("sgemm_gflops", "")
        yield row(f"AMN's server, {what}", own, "sgemm of its products", other, rate, part)
    starts = found.get("startup", {})
    for ranks, f in starts.get("starts", {}).items():
        alone = starts["import_torch"]["alone"]["wall"]
        yield row(f"start of {ranks} ranks", f["max"]["total"], "import torch, one process", alone, "")
    if "cost_model" in found:
        worst = found["cost_model"]["held_out"]
        yield ("cost model, worst held-out error", f"{100 * worst:.0f} %", "", "", "", "", "")


def spent(seconds: float) -> str:
    """Three digits that count, with their unit."""
    unit, factor = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{shown(seconds * factor)} {unit}"


def main() -> int:
    folder = Path(sys.argv[1])
    paths = {part: folder / f"{part}.json" for part in PARTS}
    found = {part: json.loads(path.read_text()) for part, path in paths.items() if path.exists()}
    told = markdown(COLUMNS, rows(found))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(told)
    print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
