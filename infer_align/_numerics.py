"""Elementwise numerics shared by every layer, written once against the Array API.

Each function takes NumPy, JAX or torch arrays and returns the same kind. Log-weights of
``-inf`` (outcomes that a hard constraint rejects) are ordinary values: nothing here turns
one into NaN.
"""

import math
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

Array = Any
"""An array of any library that follows the Array API (NumPy, JAX, torch)."""


def namespace(*arrays: Array) -> Any:
    """Array API namespace of the arguments, numbers and ``None`` left aside."""
    kept = [x for x in arrays if not (x is None or isinstance(x, int | float | np.generic))]
    return array_api_compat.array_namespace(*kept) if kept else array_api_compat.numpy


def logsumexp(x: Array, *, axis: int = 0, keepdims: bool = False) -> Array:
    """``log sum exp(x)`` along an axis; ``-inf`` where every entry is ``-inf``."""
    xp = namespace(x)
    top = xp.max(x, axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    total = xp.sum(xp.exp(x - top), axis=axis, keepdims=True)
    positive = total > 0
    out = xp.where(positive, xp.log(xp.where(positive, total, 1.0)) + top, -math.inf)
    return out if keepdims else xp.squeeze(out, axis=axis)


def logmeanexp(x: Array, *, axis: int = 0, keepdims: bool = False) -> Array:
    """``log mean exp(x)`` along an axis."""
    return logsumexp(x, axis=axis, keepdims=keepdims) - math.log(x.shape[axis])


def softplus(x: Array) -> Array:
    """``log(1 + exp(x))`` without overflow."""
    xp = namespace(x)
    return xp.logaddexp(xp.zeros_like(x), x)


def log_ratio(numerator: Array, denominator: Array) -> Array:
    """``numerator - denominator`` of log-probabilities, with 0 where both are ``-inf``."""
    xp = namespace(numerator, denominator)
    neither = (numerator == -math.inf) & (denominator == -math.inf)
    return xp.where(neither, 0.0, numerator - xp.where(neither, 0.0, denominator))
