"""Where a function crosses zero."""

from collections.abc import Callable
from typing import Any


def root(
    f: Callable[[float], Any], low: float | int, high: float | int, *, absolute: float = 1e-300
) -> float:
    """A zero of f between two points of opposite signs, by Brent's method.

    Parameters
    ----------
    f : callable
        Continuous; its values are turned into floats.
    low, high : float
    absolute : float
        Error that does not matter; by default the last digit does.
    """
    from scipy.optimize import brentq

    find: Any = brentq  # its stubs ask for NumPy scalars
    return float(find(lambda x: float(f(x)), low, high, xtol=absolute, rtol=8.9e-16, maxiter=1000))
