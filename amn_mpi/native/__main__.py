"""``python -m amn_mpi.native``: compile the library in place, and say what this processor runs of it."""

from __future__ import annotations

import sys

from amn_mpi import native
from amn_mpi.native.build import BuildError, build


def main() -> int:
    try:
        path = build()
    except BuildError as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    names = filter(None, (native.available(), native.available("bf16")))
    print(f"{path}: {', '.join(names) or native.reason()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
