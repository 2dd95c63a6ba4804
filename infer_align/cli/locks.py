"""Who writes to a run folder: a file with a process and a host, held as long as the run lives.

Where the file system has locks, the system itself lets go when the process ends, however it ends;
where it has none, the process number tells.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from infer_align.cli.errors import Stop

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

NAME = "infer_align.lock"


@dataclass(frozen=True)
class Lock:
    """The right to write to a run folder."""

    folder: Path
    number: int
    """Of the open file."""

    def check(self) -> None:
        """Stop a run whose folder was taken from under it.

        Raises
        ------
        Stop
            If the folder was deleted, moved, or given to another run.
        """
        if not _is(self.folder / NAME, self.number):
            raise Stop(
                f"the run folder {self.folder} was deleted or moved while the run was writing to "
                "it, so the run was stopped; if it was moved, go on there with --resume",
                code=1,
            )


@contextmanager
def held(folder: Path) -> Iterator[Lock]:
    """Own a run folder, which exists, until the block ends.

    Raises
    ------
    Stop
        If another run owns it; says which, and what to do.
    """
    path = folder / NAME
    number = _take(path, folder)
    try:
        yield Lock(folder, number)
    finally:
        with suppress(OSError):
            os.ftruncate(number, 0)  # where an open file cannot be removed, it is empty at least
            if _is(path, number):
                path.unlink()
        os.close(number)


def check_unused(folder: Path) -> None:
    """Refuse a run folder that a live run owns."""
    if (folder / NAME).is_file():
        with held(folder):
            pass


def _take(path: Path, folder: Path) -> int:
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise Stop(f"no run can write to {folder} ({error.strerror})") from error
        free = _grab(number)
        if free is not False and not _is(path, number):
            os.close(number)  # its owner has just ended and removed it
            continue
        owner = _read(number)
        if free is None:
            free = not alive(owner.get("pid"))
        elsewhere = owner.get("host", socket.gethostname()) != socket.gethostname()
        if free and not elsewhere:
            _sign(number)
            return number
        os.close(number)
        raise Stop(_refusal(path, folder, owner, elsewhere=elsewhere))


def _refusal(path: Path, folder: Path, owner: dict[str, Any], *, elsewhere: bool) -> str:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', 'this machine')}"
    who += f", since {owner.get('since', 'just now')}"
    end = (
        f"; if that run is dead, which cannot be seen from {socket.gethostname()}, remove {path}"
        if elsewhere
        else ": wait until it ends, or stop it (kill -TERM writes a checkpoint)"
    )
    return f"a run is writing to {folder} ({who}){end}, or give another --run-dir"


def _grab(number: int) -> bool | None:
    """Whether the system gives us the file; None where it has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks
        return None
    return True


def alive(pid: Any) -> bool:
    """Whether another process of this number runs here."""
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return False
    if os.name != "posix":
        return True  # nothing there asks a process without harm
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, and is somebody else's
        return True
    return True


def _is(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(number))
    except OSError:
        return False


def _read(number: int) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        os.lseek(number, 0, os.SEEK_SET)
        found = json.loads(os.read(number, 10_000))
        if isinstance(found, dict):
            return found
    return {}


def _sign(number: int) -> None:
    now = datetime.now().isoformat(timespec="seconds", sep=" ")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    os.ftruncate(number, 0)
    os.lseek(number, 0, os.SEEK_SET)
    os.write(number, (json.dumps(owner) + "\n").encode())
    os.fsync(number)
