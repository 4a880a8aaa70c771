"""The pairs of a comparison, "method seed", one a line: index 0 of jobs/array.sbatch is the first.

``python -m jobs.pairs NAME [--methods A,B] [--seeds 0,1]``
"""

import itertools
import sys

from amn_mpi import compare, matrix
from amn_mpi.errors import UserError

try:
    request = compare.parse(sys.argv[1:])
    found = matrix.read(request.names[0], request.chosen, request.words)
except UserError as error:
    print(f"amn_mpi: {error}", file=sys.stderr)
    sys.exit(error.status)
for method, seed in itertools.product(found.trials, dict.fromkeys(cell.seed for cell in found.cells)):
    print(method, seed)
