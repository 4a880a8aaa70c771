"""Many runs in one start of the ranks: $1 is a JSON file with the words of each run's command line."""

import json
import sys
from pathlib import Path

from amn_mpi import main
from amn_mpi.comm import Communicator

comm = Communicator()
for words in json.loads(Path(sys.argv[1]).read_text()):
    main.Work()(comm, words)
comm.close(comm.meet())
