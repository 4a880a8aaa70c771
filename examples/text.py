"""Tokens out of real text: ``python examples/text.py FILE.npz [VOCABULARY]``; of 2000 tokens by default.

The text is what Python's own standard library says about itself. A sample is the docstring of a class or
function, its label the field that its module is of, and a client holds the docstrings of some modules.
A word's token is its checksum: no dictionary has to be agreed on, and rare words may share a number.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FIELDS = {
    "network": "http urllib email smtplib ftplib imaplib poplib socket socketserver ssl xmlrpc asyncio",
    "files": "pathlib shutil os tempfile zipfile tarfile gzip bz2 lzma io glob posixpath ntpath mailbox dbm",
    "windows": "tkinter turtle turtledemo idlelib curses cmd",
    "data": "collections datetime calendar decimal fractions statistics random heapq json csv pickle xml",
    "code": "ast inspect dis tokenize importlib pdb bdb trace typing dataclasses unittest doctest lib2to3",
    "parallel": "threading multiprocessing concurrent queue subprocess sched selectors signal",
}
LENGTH, CLIENTS, SHORTEST = 40, 16, 4


def docstrings(package: str) -> Iterator[tuple[str, str]]:
    """(module, docstring) of all classes and functions, from the source alone: nothing is imported."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted([*library.glob(f"{package}.py"), *(library / package).rglob("*.py")]):
        if "test" in path.parts or "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield str(path.relative_to(library)), ast.get_docstring(node) or ""


def tokens(text: str, vocabulary: int) -> list[int]:
    """The first words as numbers 1 .. vocabulary - 1."""
    words = re.findall(r"[a-z]+", text.lower())[:LENGTH]
    return [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in words]


def main(path: str = "tokens.npz", vocabulary: int = 2000) -> None:
    rows, labels, owners = [], [], []
    for label, packages in enumerate(FIELDS.values()):
        for package in packages.split():
            for module, text in docstrings(package):
                found = tokens(text, vocabulary)
                if len(found) >= SHORTEST:
                    rows.append(found + [0] * (LENGTH - len(found)))  # padding
                    labels.append(label)
                    owners.append(zlib.crc32(module.encode()) % CLIENTS)
    np.savez(path, x=np.array(rows), y=np.array(labels), client=np.array(owners), class_names=list(FIELDS))
    most = np.bincount(labels).max() / len(labels)
    print(f"{path}: {len(rows)} docstrings, {len(FIELDS)} fields, {100 * most:.0f} % of the largest one")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
