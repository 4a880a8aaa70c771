"""A run whose ranks leave in the folder $MARK where they were and what went over their host's link."""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from amn_mpi import main
from amn_mpi.comm import Communicator

close = Communicator.close


def noted(self: Communicator, status: int = 0) -> NoReturn:
    devices = dict(line.split(":") for line in Path("/proc/self/net/dev").read_text().splitlines()[2:])
    figures = next(f.split() for name, f in devices.items() if name.strip() == "veth")
    seen = {"host": self.host, "ranks_on_host": self.ranks_on_host, "server_on_host": self.server_on_host}
    seen |= {"received": int(figures[0]), "sent": int(figures[8])}
    (Path(os.environ["MARK"]) / f"{self.rank}.json").write_text(json.dumps(seen))
    close(self, status)


Communicator.close = noted
main.main(sys.argv[1:])
