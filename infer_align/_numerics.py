"""Elementwise numerics shared by every layer, written once against the Array API.

Each function takes NumPy, JAX or torch arrays and returns the same kind. Log-weights of
``-inf`` (outcomes that a hard constraint rejects) are ordinary values: nothing here turns
one into NaN.
"""

import math
from collections.abc import Callable
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

Array = Any
"""An array of any library that follows the Array API (NumPy, JAX, torch)."""
NOISE = 1e-3
"""In nats: log-densities of float32 networks are no better, so a bound may be passed by this."""


def namespace(*arrays: Array) -> Any:
    """Array API namespace of the arguments, numbers and ``None`` left aside."""
    kept = [x for x in arrays if not (x is None or isinstance(x, int | float | np.generic))]
    return array_api_compat.array_namespace(*kept) if kept else array_api_compat.numpy


def beside(like: Array, x: Any, *, integer: bool = False) -> Array:
    """Numbers or an array, in an array's library, on its device and of its dtype (or integers)."""
    xp = namespace(like)
    where = {"device": like.device} if array_api_compat.is_torch_array(like) else {}
    return xp.asarray(x, dtype=None if integer else like.dtype, **where)


def own(y: Any) -> Any:
    """Outcomes (an array, or a dict of them by site) that user code may edit in place: a copy.

    JAX arrays cannot be edited, and stay as they are.
    """
    if isinstance(y, dict):
        return {site: own(x) for site, x in y.items()}
    if array_api_compat.is_torch_array(y):
        return y.clone()
    return y.copy() if isinstance(y, np.ndarray) else y


def as_real(x: Array, what: str) -> Array:
    """The array itself; TypeError if it is complex, for no imaginary part is dropped."""
    kind = str(getattr(x, "dtype", ""))
    if isinstance(x, complex) or "complex" in kind:
        raise TypeError(f"{what} is complex ({kind or 'complex'}); it must be real: take .real")
    return x


def logsumexp(x: Array, *, axis: int = 0, keepdims: bool = False) -> Array:
    """``log sum exp(x)`` along an axis; ``-inf`` where every entry is ``-inf``."""
    xp = namespace(x)
    top = xp.max(x, axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    total = xp.sum(xp.exp(x - top), axis=axis, keepdims=True)
    positive = total > 0
    out = xp.where(positive, xp.log(xp.where(positive, total, 1.0)) + top, -math.inf)
    return out if keepdims else xp.squeeze(out, axis=axis)


def greatest(x: Array, *, axis: int = 0, keepdims: bool = False) -> Array:
    """Largest finite entry along an axis, 0 where there is none: what to subtract before ``exp``.

    Exponentials of numbers with a common offset have lost its digits; their sums miss one by as
    much, and a mean of offset numbers under them is off by the square of the offset, times 1e-16.
    """
    xp = namespace(x)
    top = xp.max(xp.where(xp.isfinite(x), x, -math.inf), axis=axis, keepdims=keepdims)
    return xp.where(xp.isfinite(top), top, xp.zeros_like(top))


def normalised(log_density: Array) -> tuple[Array, Array]:
    """Log-probabilities over axis 0 and log Z, whatever offset the densities share.

    Log Z is ``-inf``, and the first ``-inf``, where all entries are.
    """
    top = greatest(log_density)
    centred = log_density - top
    rest = logsumexp(centred, axis=0)
    xp = namespace(rest)
    return centred - xp.where(rest > -math.inf, rest, 0.0), top + rest


def logmeanexp(x: Array, *, axis: int = 0, keepdims: bool = False) -> Array:
    """``log mean exp(x)`` along an axis; of equal entries, that entry."""
    top = greatest(x, axis=axis, keepdims=True)
    out = top + (logsumexp(x - top, axis=axis, keepdims=True) - math.log(x.shape[axis]))
    return out if keepdims else namespace(x).squeeze(out, axis=axis)


def mean_under(p: Array, values: Array) -> Array:
    """``sum p·values`` over axis 0, of weights that sum to 1 up to rounding; values may be ±inf.

    About the greatest value: what the weights miss of 1 would else be multiplied by an offset.
    """
    xp = namespace(p, values)
    level = greatest(xp.where(p > 0, values, -math.inf))
    return level + xp.sum(p * (values - level), axis=0)


def ties(x: Any) -> Any:
    """Distance within which float64 sums about x are one: 1e-10, and 16 units in their last place.

    An offset rounds what is added to it: equal log-weights of different outcomes differ by that.
    """
    return 1e-10 + 16 * float(np.finfo(np.float64).eps) * np.abs(x)


def softplus(x: Array) -> Array:
    """``log(1 + exp(x))`` without overflow."""
    xp = namespace(x)
    return xp.logaddexp(xp.zeros_like(x), x)


def log_ratio(numerator: Array, denominator: Array) -> Array:
    """``numerator - denominator`` of log-probabilities, with 0 where both are ``-inf``."""
    xp = namespace(numerator, denominator)
    neither = (numerator == -math.inf) & (denominator == -math.inf)
    return xp.where(neither, 0.0, numerator - xp.where(neither, 0.0, denominator))


def patched(base: Array, where: Array, x: Array, better: Callable[[Array], Array]) -> Array:
    """``better(x)`` where the condition holds, else ``base``.

    With NumPy ``better`` sees only these entries; other libraries evaluate it everywhere, at -1 in
    place of the others, so that no gradient overflows.
    """
    xp = namespace(x)
    if xp is array_api_compat.numpy:
        out, chosen = np.array(base, copy=None), np.nonzero(np.atleast_1d(where))
        np.atleast_1d(out)[chosen] = better(np.atleast_1d(x)[chosen])
        return out[()]
    return xp.where(where, better(xp.where(where, x, -1.0)), base)


def log1mexp(x: Array) -> Array:
    """``log(1 - exp(x))`` for x <= 0, accurate at both ends; ``-inf`` at 0."""
    xp = namespace(x)
    half = -math.log(2)
    below = xp.where(x < 0, x, -1.0)
    far = xp.log1p(-xp.exp(xp.where(below < half, below, half)))
    out = patched(far, below > half, below, lambda near: xp.log(-xp.expm1(near)))
    return xp.where(x < 0, out, -math.inf)


def log_neg_log1mexp(x: Array) -> Array:
    """``log(-log(1 - exp(x)))`` for x <= 0: about x where exp(x) is small, ``-inf`` included."""
    xp = namespace(x)
    return patched(
        x + 0.5 * xp.exp(x), x > -18.0, x, lambda rest: namespace(rest).log(-log1mexp(rest))
    )


def log1m_exp_neg_exp(log_d: Array) -> Array:
    """``log(1 - exp(-d))`` from log d, however small d is."""
    xp = namespace(log_d)
    certain = log_d > 3.7  # exp(-d) is below rounding
    d = xp.exp(xp.where(certain, 0.0, log_d))
    base = xp.where(certain, 0.0, log_d - 0.5 * d)
    return patched(base, (log_d > -18.0) & ~certain, -d, log1mexp)


def cumulative_logsumexp(x: Array) -> Array:
    """``log sum exp`` of the first entries, up to and including each, along axis 0.

    NumPy adds one entry after the other; other libraries double the span in log2(n) steps, which
    they can differentiate.
    """
    xp = namespace(x)
    if xp is array_api_compat.numpy:
        return np.logaddexp.accumulate(x)
    step = 1
    while step < x.shape[0]:
        nothing = xp.full_like(x[:step], -math.inf)
        x = xp.logaddexp(x, xp.concat([nothing, x[:-step]]))
        step *= 2
    return x


def check_defined(values: Array, what: str) -> Array:
    """The values themselves: log-densities are finite, or -inf for what is rejected.

    Inside ``jax.jit``, where they are not known, nothing is checked.

    Raises
    ------
    ValueError
        For NaN and +inf.
    """
    xp = namespace(values)
    try:
        number = int(xp.sum(xp.astype(xp.isnan(values) | (values == math.inf), xp.int32)))
    except TypeError:  # a JAX tracer
        return values
    if number:
        raise ValueError(
            f"{what} is NaN or +inf for {number} of {math.prod(values.shape)} entries; it must "
            "be finite, or -inf for an outcome that is rejected"
        )
    return values


def concrete(x: Array) -> np.ndarray | None:
    """The values of an array as NumPy's, or None where they are not known while tracing."""
    if array_api_compat.is_torch_array(x):
        x = x.detach().cpu()
        return (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()
    try:
        return np.asarray(x)
    except TypeError:  # a JAX tracer; outside jit its entries are still known
        try:
            flat = namespace(x).reshape(x, (-1,))
            entries = [flat[i].item() for i in range(flat.shape[0])]
            return np.array(entries, dtype=x.dtype).reshape(x.shape)
        except TypeError:
            return None
