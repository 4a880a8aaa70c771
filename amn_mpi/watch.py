"""Names the rank that was killed, where the launcher ends all the others without naming it.

MPICH's launcher (hydra) answers the loss of a rank with SIGKILL for all, and its own account often
names a process that it killed itself. So one rank on each host starts two processes, which sleep:

- The watcher, in a session of its own, holds a connection to every rank of the host and waits for
  the first that breaks. Linux closes the files of a dying process in falling order of their numbers:
  this connection has a higher one than hydra's, and so breaks before hydra notices.
- The sentinel stays in the process group of the rank that started it. hydra kills whole groups: if
  the sentinel goes first, the cause is on another host, and the watcher is silent.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
from contextlib import suppress

MESSAGE = (
    "amn_mpi: {} was killed or crashed; the launcher ends the others. "
    "The last checkpoint serves: run the same command with --resume auto\n"
)
LISTENER = 3


def start() -> str:
    """Start the watcher of this host; returns its address for ``join``, "" where none can be had."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # a free name, which is no file
        listener.listen(4096)
        silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", __file__],
            {name: value for name, value in os.environ.items() if not name.startswith("PMI")},
            file_actions=[*silent, (os.POSIX_SPAWN_DUP2, listener.fileno(), LISTENER)],
            setsigmask=signal.valid_signals(),  # hydra passes Ctrl-C on to the whole group
        )
        return listener.getsockname().decode()
    return ""


def join(address: str, name: str) -> socket.socket:
    """Be watched, from now until ``end``."""
    launcher = int(os.environ.get("PMI_FD", 0))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as low:
        line = socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, launcher))
    with suppress(OSError):
        line.connect(address)
        line.send(name.encode())
    return line


def end(line: socket.socket | None) -> None:
    """Nothing that happens on this host from now on is a loss."""
    with suppress(OSError):
        if line:
            line.send(b"end")


def main() -> None:
    """Become sentinel and watcher."""
    os.closerange(LISTENER + 1, 4096)  # the launcher's connection to the rank has to end with the rank
    guard, sentinel = socket.socketpair()
    if os.fork():
        guard.close()
        sentinel.recv(1)  # until the watcher ends
        return
    sentinel.close()
    os.setsid()
    sys.stderr.write(watch(guard))


def watch(guard: socket.socket) -> str:
    """What there is to say, as soon as there is."""
    listener = socket.socket(fileno=LISTENER)
    known, names = {guard.fileno(): guard, LISTENER: listener}, dict[socket.socket, str]()
    events = select.epoll()  # tells in the order in which things happened
    for number in known:
        events.register(number, select.EPOLLIN)
    while True:
        source = known[events.poll(maxevents=1)[0][0]]
        if source is listener:
            rank, _ = listener.accept()
            known[rank.fileno()] = rank
            events.register(rank, select.EPOLLIN)
            continue
        said = source.recv(1000)
        if said.startswith(b"rank"):
            names[source] = said.decode()
        else:
            return MESSAGE.format(names[source]) if not said and source in names else ""


if __name__ == "__main__":
    main()
