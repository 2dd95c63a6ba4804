r"""Resampling schemes: which outcomes go on, by their weights.

Each takes probabilities (n, *contexts), a number m and a generator, and returns the rows of m
chosen outcomes in each context. All are unbiased, :math:`E[\#\{j : a_j = i\}] = m p_i`; they differ
in the variance of these counts (Douc, Cappé, Moulines 2005, arXiv cs/0507025): systematic and
stratified draws and the residuals' deterministic copies never exceed the multinomial's. A context
whose probabilities are all zero has nothing to choose from: its rows stay 0, 1, ..., in turn.
"""

import numpy as np
from jaxtyping import Float, Int

from infer_align._arguments import count, instance, reals

Probabilities = Float[np.ndarray, "n *contexts"]
Ancestors = Int[np.ndarray, "m *contexts"]

__all__ = ["multinomial", "residual", "stratified", "systematic"]


def multinomial(probabilities: Probabilities, m: int, rng: np.random.Generator) -> Ancestors:
    """Independent choices.

    Parameters
    ----------
    probabilities : array, shape (n, *contexts)
        Non-negative; the scale of a context does not matter.
    m : int
        Number of choices in each context.
    rng : numpy.random.Generator

    Returns
    -------
    int array, shape (m, *contexts)
        Rows, in the order of the draws.

    Raises
    ------
    ValueError
        For a negative or NaN probability, or m below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.samplers import multinomial
    >>> multinomial(np.array([0.0, 1.0]), 3, np.random.default_rng(0)).tolist()
    [1, 1, 1]
    """
    flat = _checked(probabilities, m, rng)
    return _inverse(flat, rng.random((m, flat.shape[1])), probabilities.shape[1:])


def stratified(probabilities: Probabilities, m: int, rng: np.random.Generator) -> Ancestors:
    """One uniform number in each of m equal parts of the cumulative distribution (Kitagawa 1996).

    Parameters
    ----------
    probabilities, m, rng
        As for `multinomial`.

    Returns
    -------
    int array, shape (m, *contexts)
        Rows, ascending.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.samplers import stratified
    >>> stratified(np.array([0.5, 0.5]), 4, np.random.default_rng(0)).tolist()
    [0, 0, 1, 1]
    """
    flat = _checked(probabilities, m, rng)
    return _comb(flat, rng.random((m, flat.shape[1])), probabilities.shape[1:])


def systematic(probabilities: Probabilities, m: int, rng: np.random.Generator) -> Ancestors:
    """One uniform number for a comb of m points: row i is chosen ⌊m p_i⌋ or ⌈m p_i⌉ times.

    The variance of an average depends on the order of the rows, and no bound on it holds for
    every order.

    Parameters
    ----------
    probabilities, m, rng
        As for `multinomial`.

    Returns
    -------
    int array, shape (m, *contexts)
        Rows, ascending.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.samplers import systematic
    >>> rows = systematic(np.array([0.7, 0.3]), 10, np.random.default_rng(0))
    >>> np.bincount(rows).tolist()
    [7, 3]
    """
    flat = _checked(probabilities, m, rng)
    u = np.broadcast_to(rng.random((1, flat.shape[1])), (m, flat.shape[1]))
    return _comb(flat, u, probabilities.shape[1:])


def residual(probabilities: Probabilities, m: int, rng: np.random.Generator) -> Ancestors:
    """⌊m p_i⌋ copies of each row, and the rest by independent choices (Liu and Chen 1998).

    Parameters
    ----------
    probabilities, m, rng
        As for `multinomial`.

    Returns
    -------
    int array, shape (m, *contexts)
        Rows: the copies, ascending, then the choices.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.samplers import residual
    >>> residual(np.array([0.5, 0.25, 0.25]), 4, np.random.default_rng(0)).tolist()
    [0, 0, 1, 2]
    """
    flat = _checked(probabilities, m, rng)
    total = flat.sum(axis=0)
    expected = m * flat / np.where(total > 0, total, 1.0)
    copies = np.floor(expected).astype(int)
    chosen = _inverse(expected - copies, rng.random((m, flat.shape[1])), flat.shape[1:])
    rows = np.arange(len(flat))
    for c in np.flatnonzero(total > 0):
        kept = np.repeat(rows, copies[:, c])
        chosen[: len(kept), c] = kept
    return chosen.reshape(m, *probabilities.shape[1:])


def _checked(probabilities: Probabilities, m: int, rng: np.random.Generator) -> np.ndarray:
    """Probabilities as (n, C)."""
    instance("rng", rng, np.random.Generator, "np.random.default_rng(0)")
    count("m, the number of outcomes to choose,", m)
    p = reals("probabilities", probabilities, axes=1)
    if len(p) == 0 or not np.all((p >= 0) & (p < np.inf)):
        raise ValueError(
            "probabilities to resample by must be finite and not negative, and at least one a "
            f"context; got {len(p)} with minimum {p.min() if p.size else 'of nothing'}: "
            "pass normalised weights, not log-weights"
        )
    return p.reshape(len(p), -1)


def _comb(flat: np.ndarray, u: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return _inverse(flat, (np.arange(len(u))[:, None] + u) / len(u), shape)


def _inverse(flat: np.ndarray, u: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows at which the cumulative distributions (n, C) pass the numbers u (m, C)."""
    chosen = np.empty(u.shape, dtype=np.int64)
    for c in range(flat.shape[1]):
        cumulative = flat[:, c].cumsum()
        total = cumulative[-1]
        if total > 0:
            # Below the total whatever the rounding, so that no row of probability 0 is found.
            level = np.minimum(u[:, c] * total, np.nextafter(total, 0.0))
            chosen[:, c] = np.searchsorted(cumulative, level, side="right")
        else:
            chosen[:, c] = np.arange(len(u)) % len(flat)
    return chosen.reshape(len(u), *shape)
