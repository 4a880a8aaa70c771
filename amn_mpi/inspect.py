"""What a checkpoint or a models.h5 holds, and whether it is sound.

``python -m amn_mpi.inspect FILE [OTHER]``

FILE is a checkpoint, a models.h5, or the folder of a run: its newest checkpoint, and a line for each
of the others. OTHER is one more of them, or a config.yaml: the keys on which the configurations differ.
Large files are read piece by piece; a damaged one is never opened as HDF5.

Exit status: 0 sound, 1 damaged, 2 there is nothing to inspect.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amn_mpi import checkpoint, health, tool
from amn_mpi.checkpoint import Index
from amn_mpi.errors import UserError
from amn_mpi.health import Examined, Part
from amn_mpi.progress import table

Facts = list[tuple[str, str]]
MOST = 10  # names and numbers in one line


def main(argv: Sequence[str]) -> int:
    """The exit status; everything is printed."""
    return tool.carry_out(argv, __doc__ or "", lambda words: _inspect(*_paths(words)), wrong=2)


def _paths(argv: Sequence[str]) -> tuple[Path, Path | None]:
    wrong = [word for word in argv if word.startswith("-")]
    if wrong or not 1 <= len(argv) <= 2:
        raise UserError(f"{wrong[0] if wrong else 'inspect what?'}: valid is FILE [OTHER]; see --help")
    return Path(argv[0]), Path(argv[1]) if len(argv) == 2 else None


def _inspect(path: Path, other: Path | None) -> int:
    paths = _files(path) if path.is_dir() else [path]
    found = health.examine(paths[0])
    _show(found)
    sound = not found.damage
    if paths[1:]:
        sound = _others(path, paths[1:]) and sound
    if other is None:
        return int(not sound)
    name, config, damage = _config(other)
    for reason in damage:
        print(f"  {name}: {reason}")
    if not found.damage and not damage:
        _differences(found, name, config)
    return int(not sound or bool(damage))


def _files(folder: Path) -> list[Path]:
    """The run's checkpoints, the newest first, those of its baselines, and its models."""
    inside = folder / "checkpoints"
    top = inside if inside.is_dir() else folder
    below = sorted(path for path in top.iterdir() if path.is_dir())
    found = [path for each in (top, *below) for path in checkpoint.listed(each)]
    if not found:
        raise UserError(f"{folder}: holds no checkpoints")
    models = folder / "models.h5"
    return [*found, models] if models.exists() else found


# ---- one file


def _show(found: Examined) -> None:
    kind = found.kind.removeprefix("amn_mpi ")
    print(f"{found.path}: {kind}, {'damaged' if found.damage else 'sound'}")
    for reason in found.damage:
        print(f"  damaged: {reason}")
    facts = _file(found)
    if found.about:
        facts += _run(found) + (_progress(found) if found.history else _models(found))
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        print(f"  {name:<{width}}  {text}")
    if found.index is not None:
        columns = ["name", "shape", "type", "bytes", "state", "NaN or Inf"]
        table("data sets", columns, _rows(found, found.index))
    for part in found.parts:
        if part.rows:
            print(f"  {part.name}: NaN or Inf at client {_some(part.rows)}")
    sys.stdout.flush()


def _file(found: Examined) -> Facts:
    facts = [("written", _when(found.path)), ("size", f"{found.size:,} bytes")]
    return facts if found.index is None else [*facts, ("format", str(found.index.format))]


def _run(found: Examined) -> Facts:
    config, layout = found.config, found.about["layout"]
    data, model = config["data"], config["model"]["name"]
    return [
        ("round", f"{found.index.round if found.index else 0} of {config['rounds']}"),
        ("method", f"{config['method']['name']}, seed {config['seed']}"),
        ("data", f"{data['name']}, labels {_labels(data)}, sizes {data['sizes']}, concept {data['concept']}"),
        ("clients", str(_clients(found))),
        ("parameters", f"{layout['size']:,} ({model}, {len(layout['tensors'])} tensors)"),
    ]


def _clients(found: Examined) -> int:
    """How many have trained, or have a model here: fewer than ``data.clients`` where some come later."""
    models = [part.shape[0] for part in found.parts if part.name == "models"]
    if models:
        return models[0]
    trained = found.about.get("federation")  # unknown to older checkpoints
    return len(trained["train"]) if trained else found.config["data"]["clients"]


def _labels(data: dict[str, Any]) -> str:
    option = {"dirichlet": "alpha", "classes": "classes_per_client", "groups": "label_groups"}
    return " ".join(str(data[key]) for key in ("labels", option.get(data["labels"], "")) if key)


def _progress(found: Examined) -> Facts:
    """What only a checkpoint tells."""
    about, history = found.about, found.history
    scored = [row for row in history["rounds"] if "mean_accuracy" in row]
    facts = [("accuracy", "not evaluated yet")]
    if scored:
        last = scored[-1]
        facts = [("accuracy", f"{last['mean_accuracy']:.2f} % after round {last['round']}, "
                              f"worst tenth {last['worst10']:.2f} %")]  # fmt: skip
    if about["open"]:
        facts.append(("left open", f"the evaluation of round {about['round']}"))
    diverged = sorted({client for row in history["rounds"] for client in row.get("diverged", ())})
    if diverged:
        facts.append(("diverged", f"client {_some(diverged)}"))
    starts = [
        f"{s['ranks']} rank{'s' * (s['ranks'] > 1)} after round {s['after_round']}" for s in history["starts"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [*facts, ("starts", _some(starts)), ("engine", about["engine"]), ("versions", versions)]


def _models(found: Examined) -> Facts:
    """What only a models.h5 tells."""
    about = found.about
    shape = " x ".join(map(str, about["shape"]))
    facts = [
        ("classes", f"{about['classes']}: {_some(about['class_names'])}"),
        ("input", f"{shape}, as x * {about['scale']:g} + {about['shift']:g}"),
    ]
    norms = [n for part in found.parts for n in part.norms if n < float("inf")]
    if norms:
        told = f"min {min(norms):.4g}, mean {statistics.fmean(norms):.4g}, max {max(norms):.4g}"
        facts.append(("norms", f"{told} over the clients"))
    return facts


def _rows(found: Examined, index: Index) -> list[list[str]]:
    """A row for each data set; of a damaged file only what its first line tells of the large ones."""
    if not found.damage:
        return [_row(part) for part in found.parts]
    bad = {reason.partition(":")[0] for reason in found.damage}
    return [
        [name, "-", "-", f"{place.nbytes:,}", "damaged" if name in bad else "ok", "-"]
        for name, (place, _) in index.data.items()
    ]


def _row(part: Part) -> list[str]:
    counts = [f"{count:,} {word}" for count, word in ((part.nan, "NaN"), (part.inf, "Inf")) if count]
    odd = ", ".join(counts) or ("none" if part.dtype.startswith("float") else "-")
    return [part.name, " x ".join(map(str, part.shape)) or "one", part.dtype, f"{part.nbytes:,}", "ok", odd]


def _some(things: Sequence[Any]) -> str:
    more = f", and {len(things) - MOST} more" if len(things) > MOST else ""
    return ", ".join(map(str, things[:MOST])) + more


def _when(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))


# ---- beside it


def _others(folder: Path, paths: Sequence[Path]) -> bool:
    """A line for each other file of a run; whether all are sound."""
    lines = [_line(path) for path in paths]
    rows = [[str(path.relative_to(folder)), *texts] for path, (texts, _) in zip(paths, lines)]
    table("beside it", ["file", "written", "bytes", "state"], rows)
    return all(sound for _, sound in lines)


def _line(path: Path) -> tuple[list[str], bool]:
    try:
        found = health.examine(path, values=False)
        state = f"damaged: {', '.join(found.damage)}" if found.damage else "ok"
        return [_when(path), f"{found.size:,}", state], not found.damage
    except (UserError, OSError) as error:
        if not path.exists():  # a run goes on there
            return ["-", "-", "deleted meanwhile"], True
        return ["-", "-", str(error)], False


def _config(path: Path) -> tuple[str, dict[str, Any], list[str]]:
    """(name, configuration as {dotted key: value}, damage) of what is compared with."""
    from amn_mpi import cli
    from amn_mpi.config import leaves

    if path.is_dir():
        path = _files(path)[0]
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return str(path), leaves(cli.resolve([cli.read(str(path))], []).as_dict()), []
    found = health.examine(path, values=False)
    return str(path), {} if found.damage else _filled(found.config), found.damage


def _filled(tree: dict[str, Any]) -> dict[str, Any]:
    from amn_mpi import methods
    from amn_mpi.config import filled, leaves

    name = tree["method"]["name"]
    return filled(tree, methods.options(name)) if name in methods.METHODS else leaves(tree)


def _differences(found: Examined, name: str, config: dict[str, Any]) -> None:
    from amn_mpi.config import unlike

    rows = [
        [key, _text(one), _text(other)] for key, (one, other) in unlike(_filled(found.config), config).items()
    ]
    if rows:
        table("differences", ["key", str(found.path), name], rows)
    else:
        print(f"  the same configuration as {name}")


def _text(value: Any) -> str:
    return "-" if value is None else str(value) or '""'


if __name__ == "__main__":
    tool.start(main)
