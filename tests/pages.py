"""The documentation as its tests read it: pages, blocks, commands. Holds no test."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from running import REPOSITORY

PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")] + sorted(
    REPOSITORY.glob("docs/*.md")
)
TEXTS = {str(path.relative_to(REPOSITORY)): path.read_text() for path in PAGES}
FASHION = Path("/usr/share/datasets/fashion-mnist")


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
