"""What threads share: the libraries' handlers, torch's global generator, a network's adapters.

The stacks of handlers of Pyro and NumPyro and torch's default generator belong to the process, and
a network with adapters runs one at a time. Fits in several threads are right because they take
turns: a step of a fit in torch, a program while it runs in Python or JAX traces it, a draw from the
default generator, and drawing or scoring with a network that has adapters each wait for the others.
There is one lock, because a program of one library may call the other. Not waiting are compiled
JAX code, a backward pass of one's own, and programs that a user runs with the libraries' handlers.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def alone() -> Iterator[None]:
    """No other thread runs a step, a program or a draw of ours meanwhile; may be nested."""
    with _LOCK:
        yield
