"""What threads share: Pyro's handlers, torch's global generator, the adapters of one network.

Pyro's stack of handlers and torch's default generator belong to the process, and a network with
adapters runs one at a time. Fits in several threads are right because they take turns: a step of
a fit, a program, a draw from the default generator, and drawing or scoring with a network that has
adapters each wait for the others. A backward pass of one's own, outside a fit, does not wait.
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
