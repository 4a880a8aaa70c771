"""Write ``digits.h5``: python -m amn_mpi.data.make_digits (needs scikit-learn).

Kept so that anyone can see where the embedded file comes from and write it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).with_name("digits.h5")
SOURCE = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998), UCI Machine "
    "Learning Repository, https://doi.org/10.24432/C50P49; the 1,797 images of its test file, "
    "as in scikit-learn's load_digits"
)
LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) uint8 with values 0..16 and labels (1797,) uint8."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("make_digits needs scikit-learn: pip install scikit-learn")
    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.uint8)


def write(path: Path) -> None:
    import h5py

    x, y = load()
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=x, compression="gzip", compression_opts=9, shuffle=True)
        file.create_dataset("y", data=y, compression="gzip", compression_opts=9)
        file.attrs["source"] = SOURCE
        file.attrs["licence"] = LICENCE


if __name__ == "__main__":
    write(TARGET)
    print(f"wrote {TARGET} ({TARGET.stat().st_size} bytes)")
