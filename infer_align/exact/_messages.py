r"""Backward messages of a chain with log-weights on its edges, and the law that they define.

.. math:: b_m = \mathrm{last}, \qquad b_t(i) = \log \sum_j \exp(w_t(i, j) + b_{t+1}(j)),
          \qquad φ(y_{t+1} = j | y_t = i) = \exp(w_t(i, j) + b_{t+1}(j) - b_t(i))

Written against the Array API, so that JAX and torch differentiate through it.
"""

import math
from typing import NamedTuple

from infer_align._numerics import Array, logsumexp, namespace


class Messages(NamedTuple):
    """A weighted chain, solved."""

    log_z: Array
    """log Σ over all paths."""
    log_initial: Array
    """Of the first state, normalised, shape (S,)."""
    log_kernels: Array
    """Normalised transitions, shape (m − 1, S, S); a row is −inf where its state is impossible."""
    log_backward: Array
    """b_t, shape (m, S)."""

    def log_marginals(self) -> Array:
        """Log-probabilities of each state at each position, shape (m, S)."""
        xp = namespace(self.log_initial)
        out = [self.log_initial]
        for kernel in self.log_kernels:
            out.append(logsumexp(out[-1][:, None] + kernel, axis=0))
        return xp.stack(out)

    def expectation(self, first: Array, edges: Array) -> Array:
        """E[first(y_1) + Σ_t edges_t(y_t, y_{t+1})]; edges of shape (S, S) or (m − 1, S, S)."""
        log_here = self.log_initial
        total = _mean(log_here, first)
        for t in range(self.log_kernels.shape[0]):
            log_pair = log_here[:, None] + self.log_kernels[t]
            total = total + _mean(log_pair, edges if len(edges.shape) == 2 else edges[t])
            log_here = logsumexp(log_pair, axis=0)
        return total


def _mean(log_p: Array, values: Array) -> Array:
    xp = namespace(log_p)
    return xp.sum(xp.exp(log_p) * xp.where(log_p > -math.inf, values, 0.0))


def solve_chain(first: Array, edges: Array, last: Array, length: int) -> Messages:
    """Messages of a chain with log-weights ``first`` (S,), ``edges`` and ``last`` (S,).

    Parameters
    ----------
    first : array, shape (S,)
        Of the first state.
    edges : array, shape (S, S) or (m − 1, S, S)
        From state i (row) to state j, the same at all positions or one each.
    last : array, shape (S,)
        Of the last state.
    length : int
        Number of positions m.
    """
    xp = namespace(first, edges)
    backward = [last]
    for t in reversed(range(length - 1)):
        here = edges if len(edges.shape) == 2 else edges[t]
        backward.append(logsumexp(here + backward[-1][None, :], axis=1))
    backward.reverse()
    log_z = logsumexp(first + backward[0], axis=0)
    norm = xp.where(log_z > -math.inf, log_z, 0.0)
    kernels = []
    for t in range(length - 1):
        here = edges if len(edges.shape) == 2 else edges[t]
        possible = backward[t] > -math.inf
        own = xp.where(possible, backward[t], 0.0)
        kernel = here + backward[t + 1][None, :] - own[:, None]
        kernels.append(xp.where(possible[:, None], kernel, -math.inf))
    states = first.shape[0]
    shape = (0, states, states)
    stacked = xp.stack(kernels) if kernels else xp.reshape(edges[..., :0], (-1,))[:0]
    return Messages(
        log_z,
        first + backward[0] - norm,
        stacked if kernels else xp.reshape(stacked, shape),
        xp.stack(backward),
    )
