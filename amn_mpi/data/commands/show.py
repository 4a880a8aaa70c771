"""``show``: who gets what, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amn_mpi.data import own_clients, preparation
from amn_mpi.data.commands.words import config_of
from amn_mpi.data.federation import Federation
from amn_mpi.errors import ConfigError
from amn_mpi.progress import table
from amn_mpi.tool import options

FORMATS = (".png", ".pdf", ".svg")
MOST = 3  # classes named in a row


def run(argv: Sequence[str]) -> None:
    """Print the table; with ``--figure FILE`` draw the class counts."""
    given, words = options(argv, ("figure",))
    figure = Path(given["figure"]).expanduser() if "figure" in given else None
    if figure is not None:
        check_figure(figure)
    config = config_of("show", words)
    fed = preparation.describe(own_clients.resolved(config.data), config.seed)
    table(f"{fed.name}: {fed.clients} clients, seed {config.seed}", *client_table(fed))
    print(f"  training samples {_spread(fed.train)}; test samples {_spread(fed.test)}")
    if figure is not None:
        from amn_mpi.data.commands import figure as drawing

        drawing.save(fed, figure)
        print(f"  figure in {figure}")


def check_figure(path: Path) -> None:
    """Before the data is read, which can take long.

    Raises:
        ConfigError: the name says no format, or there is no such folder.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--figure {path}: valid is a file that ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--figure {path}: there is no folder {path.parent}")


def client_table(fed: Federation, most: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Columns and a row for each of the first ``most`` clients; groups where there is more than one."""
    groups = {
        name: values
        for name, values in (("label group", fed.label_group), ("concept group", fed.concept_group))
        if len(np.unique(values)) > 1
    }
    rows = []
    for client, counts in enumerate(fed.train_counts[:most]):
        numbers = [fed.called(client), fed.train[client], fed.test[client], (counts > 0).sum()]
        mine = [str(values[client]) for values in groups.values()]
        rows.append([*map(str, numbers), _largest(fed, counts), *mine])
    return ["client", "training", "test", "classes", "most of (label x samples)", *groups], rows


def _largest(fed: Federation, counts: np.ndarray) -> str:
    top = [k for k in np.argsort(-counts, kind="stable")[:MOST] if counts[k]]
    return ", ".join(f"{fed.class_names[k]} x {counts[k]}" for k in top)


def _spread(sizes: np.ndarray) -> str:
    return f"{sizes.sum():,}: {sizes.min()} to {sizes.max()} a client, median {np.median(sizes):g}"
