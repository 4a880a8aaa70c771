"""The embedded data set: 1,797 real handwritten digits of 8 x 8 pixels.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0. ``make_digits.py`` wrote the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data.raw import Raw
from amn_mpi.errors import UserError

if TYPE_CHECKING:
    from amn_mpi.config import Data

FILE = Path(__file__).with_name("digits.h5")


def locate(data: Data) -> dict[str, Path]:
    return {"digits": FILE}


def read(data: Data, files: dict[str, Path]) -> Raw:
    """Pixels run from 0 to 16 (counts of set pixels in 4 x 4 blocks), not to 255."""
    import h5py

    path = files["digits"]
    try:
        with h5py.File(path, "r") as file:
            x, y = file["x"][...], file["y"][...]
    except (OSError, KeyError) as error:
        raise UserError(
            f"{path}: the embedded digits cannot be read ({error}); install amn_mpi again"
        ) from None
    return Raw(x[:, None], y.astype(np.int64), [str(c) for c in range(10)], 2 / 16, -1.0)
