"""What every reader returns: samples and labels in one plain form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Pixels 0..255 become -1..1 in the model.
PIXEL_SCALE = 2 / 255
PIXEL_SHIFT = -1.0


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as read, train and test files pooled.

    ``x``: (n, channels, height, width) uint8 for images, or (n, ...) float32.
    ``y``: (n,) int64 in 0..C-1, where C is ``len(class_names)``.
    A model sees ``x * scale + shift``.
    Where the data has clients of its own: ``client`` (n,) int64, which of ``client_names`` owns each
    sample, and ``test`` (n,) bool, the source's own test samples (None: it has no split of its own).
    """

    x: np.ndarray
    y: np.ndarray
    class_names: list[str]
    scale: float = PIXEL_SCALE
    shift: float = PIXEL_SHIFT
    client: np.ndarray | None = None
    test: np.ndarray | None = None
    client_names: tuple[str, ...] = ()
