"""A run as TensorBoard shows it: scalars, the attention as an image, the configuration as text.

Event files are written here, record by record: the package's own writer would import TensorFlow where
it finds it. What it shows: ``tensorboard --logdir RUNS``.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi.callbacks import Callback

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = 12  # of the attention in a run
TALL, GAP, HEAD = 240, 8, 16  # pixels: least height of a layer, between layers, and of their names
MOST = 320  # clients with squares of their own
WHITE, PALE, DARK = (255, 255, 255), (236, 242, 249), (8, 48, 107)  # around; no attention; much of it


class TensorBoard(Callback):
    """Writes event files into RUN/tensorboard; a resumed run goes on in a further one."""

    def begin(self, config: dict[str, Any], folder: Path, facts: dict[str, Any]) -> int:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events, self._summaries = event_pb2, summary_pb2
        self._layers: list[str] = facts["layers"]
        self._rounds, self._drawn = int(facts["rounds"]), 0
        target = folder / "tensorboard"
        target.mkdir(exist_ok=True)
        known = int(facts["done"]) if any(target.glob("events.out.*")) else 0
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(target / name, "ab")  # noqa: SIM115  # closed by close()
        self._records = RecordWriter(self._file)
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        # What an earlier start wrote beyond its last checkpoint comes again: readers drop it here.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(session_log=start, step=known + 1))
        self._text("config", _indented(config), known)
        return known

    def round(self, row: dict[str, Any], attention: np.ndarray | None) -> None:
        step = row["round"]
        values = [
            self._summaries.Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars(row, self._layers)
        ]
        due = step == self._rounds or step - self._drawn >= self._rounds / IMAGES
        if attention is not None and due and "mean_accuracy" in row:
            self._drawn = step
            values.append(self._image("attention", attention))
        self._write(self._events.Event(step=step, summary=self._summaries.Summary(value=values)))

    def end(self, result: dict[str, Any]) -> None:
        if "rounds" not in result:  # a diverged run of a comparison
            return
        baselines = result.get("baselines", {}).items()
        scored = {name: one["mean_accuracy"] for name, one in baselines if "mean_accuracy" in one}
        values = [
            self._summaries.Summary.Value(tag=f"baselines/{name}", simple_value=score)
            for name, score in scored.items()
        ]
        step = result["rounds"]
        self._write(self._events.Event(step=step, summary=self._summaries.Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()

    def _text(self, tag: str, text: str, step: int) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(self._events.Event(step=step, summary=text_pb(tag, text)))

    def _image(self, tag: str, attention: np.ndarray) -> Any:
        picture, png = drawn(attention, self._layers), io.BytesIO()
        picture.save(png, "PNG")
        size = {"height": picture.height, "width": picture.width, "colorspace": 3}
        image = self._summaries.Summary.Image(encoded_image_string=png.getvalue(), **size)
        return self._summaries.Summary.Value(tag=tag, image=image)


def scalars(row: dict[str, Any], layers: list[str]) -> Iterator[tuple[str, float]]:
    """(tag, value) of one line of metrics; lists of a number a layer under the layers' names."""
    for name, one in row.get("models", {}).items():
        yield f"accuracy/{name}", one["mean_accuracy"]
        yield f"worst_tenth/{name}", one["worst10"]
    for key, value in row.items():
        if isinstance(value, (int, float)) and key not in ("round", "mean_accuracy", "worst10"):
            yield f"round/{key}", float(value)
        elif isinstance(value, list) and key != "diverged" and value and isinstance(value[0], float):
            yield from ((f"{key}/{name}", float(one)) for name, one in zip(named(layers, len(value)), value))
    yield "round/diverged", float(len(row.get("diverged", ())))
    for name, value in row.get("turn_seconds", {}).items():
        yield f"turn_seconds/{name}", float(value)


def named(layers: list[str], count: int) -> list[str]:
    """Names of ``count`` numbers or matrices: the layers', where there is one each."""
    if len(layers) == count:
        return layers
    return ["all_layers"] if count == 1 else [str(k) for k in range(count)]


def drawn(attention: np.ndarray, layers: list[str]) -> Image:
    """The layers side by side, a square per pair: a row shows whom one client listens to.

    Clients that listen to each other stand side by side, so groups are blocks along the diagonal. What the
    median client gives to the one it listens to most is as dark as it gets.

    Args:
        attention: (L, N, N), or (1, N, N) for all layers; with more than 320 clients a square is the mean of
            several.
        layers: names of the model's.
    """
    from PIL import Image, ImageDraw

    from amn_mpi.report.order import by_clusters

    order = by_clusters(attention)
    squares = attention[:, order[:, None], order].astype(np.float64)
    much = np.median(squares.max(2, keepdims=True), 1, keepdims=True)
    squares = np.minimum(_pooled(squares, -(-len(order) // MOST)) / np.maximum(much, 1e-30), 1.0)
    side = max(2, -(-TALL // squares.shape[1]))
    squares = np.repeat(np.repeat(squares, side, 1), side, 2)[..., None]
    colours = np.array(PALE) + squares * (np.array(DARK) - np.array(PALE))
    gap = np.full((colours.shape[1], GAP, 3), 255.0)
    body = np.concatenate([piece for layer in colours for piece in (gap, layer)][1:], 1)
    picture = Image.new("RGB", (body.shape[1], body.shape[0] + HEAD), WHITE)
    picture.paste(Image.fromarray(body.round().astype(np.uint8), "RGB"), (0, HEAD))
    for k, name in enumerate(named(layers, len(colours))):
        ImageDraw.Draw(picture).text((k * (colours.shape[2] + GAP), 2), name, fill=DARK)
    return picture


def _pooled(matrices: np.ndarray, size: int) -> np.ndarray:
    """Means over blocks of ``size`` rows and columns; those at the end may be smaller."""
    at = np.arange(0, matrices.shape[1], size)
    counts = np.diff(np.append(at, matrices.shape[1]))
    sums = np.add.reduceat(np.add.reduceat(matrices, at, 1), at, 2)
    return sums / np.outer(counts, counts)


def _indented(tree: dict[str, Any]) -> str:
    """A configuration as Markdown code."""
    import yaml

    text = yaml.safe_dump(tree, sort_keys=False)
    return "\n".join(f"    {line}" for line in text.splitlines())
