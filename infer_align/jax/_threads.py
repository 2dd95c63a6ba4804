"""What threads share: NumPyro's stack of handlers, and the frames of `programs`.

Both belong to the process. A program runs in Python only while JAX traces it, so runs of programs
take turns, and what is compiled runs beside them. Programs that a user runs in another thread with
handlers of NumPyro itself take no turns.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """No other thread runs a program of ours meanwhile; may be nested."""
    with _LOCK:
        yield
