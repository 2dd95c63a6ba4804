"""Powers of a distribution on a lattice in log space: slower than FFTs, and differentiable."""

import math

import numpy as np

from infer_align._numerics import Array, logsumexp, namespace


def log_power(log_p: Array, x: np.ndarray, m: int) -> Array:
    """Log-probabilities of the sum of m letters, shape (m·max(x) + 1,); −inf where impossible.

    By repeated doubling; positive terms only, so every entry is accurate, and so is its gradient.
    """
    xp = namespace(log_p)
    where = {int(s): j for j, s in enumerate(x)}
    nothing = xp.full_like(log_p[:1], -math.inf)
    base = xp.concat(
        [log_p[where[s] : where[s] + 1] if s in where else nothing for s in range(int(x.max()) + 1)]
    )
    result = 0.0 * log_p[:1]
    while m:
        if m % 2:
            result = log_convolve(result, base)
        m //= 2
        if m:
            base = log_convolve(base, base)
    return result


def log_convolve(a: Array, b: Array) -> Array:
    """``log Σ_i exp(a[i] + b[s − i])``, of length len(a) + len(b) − 1."""
    xp = namespace(a, b)
    if a.shape[0] > b.shape[0]:
        a, b = b, a
    n, size = a.shape[0], a.shape[0] + b.shape[0] - 1
    index = np.arange(size)[None, :] - np.arange(n)[:, None]
    inside = (index >= 0) & (index < b.shape[0])
    index = xp.asarray(np.where(inside, index, 0))
    moved = xp.reshape(xp.take(b, xp.reshape(index, (-1,)), axis=0), (n, size))
    return logsumexp(xp.where(xp.asarray(inside), moved + a[:, None], -math.inf), axis=0)
