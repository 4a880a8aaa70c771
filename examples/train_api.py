"""Three learning rates from one script: ``python examples/train_api.py OUT`` or ``mpirun -n 3 python ...``.

Every rank runs this file; rank 0 gets the results, the others {}.
"""

from __future__ import annotations

import sys
from pathlib import Path

import amn_mpi

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/train_api")
common = {"rounds": 10, "data": {"clients": 8}, "progress": "off", "resume": "auto"}

results = {}
for rate in (0.02, 0.05, 0.1):
    own = {"local.lr": rate, "out": out / f"lr-{rate}"}
    results[rate] = amn_mpi.train("default", common, own)

try:
    amn_mpi.train({"rounds": 0})
except amn_mpi.ConfigError as error:  # on every rank; the process lives on
    refused = str(error)

if any(results.values()):  # rank 0
    for rate, result in results.items():
        print(f"local.lr {rate}: {result['mean_accuracy']:.2f} %, worst tenth {result['worst10']:.2f} %")
    print(f"refused: {refused}")
