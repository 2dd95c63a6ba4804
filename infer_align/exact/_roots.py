"""Where a function crosses zero."""

from collections.abc import Callable
from typing import Any


def root(f: Callable[[float], Any], low: float | int, high: float | int) -> float:
    """A zero of f between two points of opposite signs, to the last digit (Brent's method).

    Parameters
    ----------
    f : callable
        Continuous; its values are turned into floats.
    low, high : float
    """
    from scipy.optimize import brentq

    find: Any = brentq  # its stubs ask for NumPy scalars
    return float(find(lambda x: float(f(x)), low, high, xtol=1e-300, rtol=8.9e-16, maxiter=1000))
