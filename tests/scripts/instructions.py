"""The main program, where rank 1 is on an older processor than the others."""

import os
import sys

if os.environ.get("PMI_RANK") == "1":
    os.environ["AMN_NATIVE"] = "generic"

from amn_mpi.main import main

main(sys.argv[1:])
