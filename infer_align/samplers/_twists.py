r"""Twists: what a particle filter expects of the rest of an outcome, from its first tokens.

.. math:: ψ_t(y_{1:t}) ≈ E_{\mathrm{prior}}[e^{φ(y)} | y_{1:t}]

With equality every particle has the same weight. Any other ψ gives an unbiased Ẑ, too, provided
that it is positive wherever the target accepts some continuation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from infer_align._arguments import function
from infer_align._numerics import Array, concrete, own


@runtime_checkable
class PrefixTwist(Protocol):
    """A twist known of the prefixes that there are."""

    def log_psi(self, prefix: Array, /) -> Array:
        """Log ψ_t of prefixes (n, C, t), shape (n, C).

        Of a prefix with its EOS (what follows it is padding) it is read once, where the EOS is
        the last token.
        """
        ...


@runtime_checkable
class NextTwist(Protocol):
    """A twist known of every next token: tokens are then drawn from prior·ψ."""

    def next_log_psi(self, prefix: Array, /) -> Array:
        """Log ψ_{t+1} of prefixes (n, C, t) and each next token, shape (n, C, V)."""
        ...


@runtime_checkable
class HasNextLogProb(Protocol):
    """A law of sequences, token by token, such as `infer_align.exact.selection.autoregressive`."""

    def next_log_prob(self, prefix: Any) -> np.ndarray:
        """Log-probabilities of the token after a prefix, shape (V,); ValueError if impossible."""
        ...


@dataclass(frozen=True)
class _Prefix:
    log_psi: Callable[[Array], Array]


@dataclass(frozen=True)
class _Next:
    next_log_psi: Callable[[Array], Array]


def prefix_twist(log_psi: Callable[[Array], Array]) -> PrefixTwist:
    """A twist from a function of prefixes: a partial potential, a value function.

    Tokens are drawn from the proposal, and weighted afterwards.

    Parameters
    ----------
    log_psi : callable
        Tokens (n, C, t), in the library of the model, to log ψ_t (n, C); ``-inf`` only where no
        continuation is accepted. C is the number of contexts, their axes flattened.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.samplers import prefix_twist
    >>> few_ones = prefix_twist(lambda prefix: np.where((prefix == 1).sum(-1) > 1, -np.inf, 0.0))
    >>> few_ones.log_psi(np.array([[[1, 0, 1]], [[0, 0, 1]]])).tolist()
    [[-inf], [0.0]]
    """
    function("log_psi", log_psi, "of prefixes (n, C, t), giving (n, C)")
    return _Prefix(lambda prefix: log_psi(own(prefix)))


def next_twist(next_log_psi: Callable[[Array], Array]) -> NextTwist:
    """A twist from a function of prefixes that knows ψ of each next token.

    Tokens are drawn from proposal·ψ, the locally optimal proposal, and resampled before they are
    drawn.

    Parameters
    ----------
    next_log_psi : callable
        Tokens (n, C, t), t from 0, to log ψ_{t+1} of each next token, (n, C, V).

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.samplers import next_twist
    >>> no_ones = next_twist(lambda prefix: np.where(np.arange(2) == 1, -np.inf, 0.0)
    ...                      + np.zeros((*prefix.shape[:2], 1)))
    >>> no_ones.next_log_psi(np.zeros((1, 1, 0), dtype=int)).tolist()
    [[[0.0, -inf]]]
    """
    function("next_log_psi", next_log_psi, "of prefixes (n, C, t), giving (n, C, V)")
    return _Next(lambda prefix: next_log_psi(own(prefix)))


def policy_twist(policy: HasNextLogProb, prior: HasNextLogProb) -> NextTwist:
    r"""The twist that draws from a policy, its ratio to the prior.

    .. math:: ψ_t(y_{1:t}) = π(y_{1:t})/\mathrm{prior}(y_{1:t})

    With the target itself for a policy, known exactly by `infer_align.exact.selection`, all
    weights are equal.

    Parameters
    ----------
    policy, prior : object with ``next_log_prob(prefix)``
        Laws of sequences of full length; the prior is the filter's proposal.

    Returns
    -------
    NextTwist
        It evaluates each distinct prefix once.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.exact import reward_law
    >>> from infer_align.exact.selection import autoregressive, threshold
    >>> from infer_align.samplers import policy_twist
    >>> law = reward_law([0.5, 0.5], [0, 1], 3)  # at least two ones in three tosses
    >>> twist = policy_twist(autoregressive(law, threshold(law, 2)),
    ...                      autoregressive(law, law.log_prob))
    >>> np.exp(twist.next_log_psi(np.array([[[0, 1]]]))).round(4).tolist()
    [[[0.0, 2.0]]]
    """

    def next_log_psi(prefix: Array) -> np.ndarray:
        tokens = _known(prefix)
        n, contexts, t = tokens.shape
        distinct, place = np.unique(tokens.reshape(n * contexts, t), axis=0, return_inverse=True)
        log_ratio = np.stack([_log_ratio(policy, prior, tuple(row)) for row in distinct.tolist()])
        return log_ratio[place.ravel()].reshape(n, contexts, -1)

    return _Next(lambda prefix: next_log_psi(own(prefix)))


def _log_ratio(policy: HasNextLogProb, prior: HasNextLogProb, prefix: tuple[int, ...]) -> Any:
    """log π/prior of the prefix with each next token; −inf where π excludes it."""
    total: Any = 0.0
    for t in range(len(prefix) + 1):
        if np.ndim(total) == 0 and total == -math.inf:
            return np.full(prior.next_log_prob(()).shape, -math.inf)
        ours, base = policy.next_log_prob(prefix[:t]), prior.next_log_prob(prefix[:t])
        ratio = np.where(ours > -math.inf, ours - np.where(base > -math.inf, base, 0.0), -math.inf)
        total = total + (ratio if t == len(prefix) else ratio[prefix[t]])
    return total


def _known(prefix: Array) -> np.ndarray:
    tokens = concrete(prefix)
    if tokens is None:
        raise ValueError("this twist reads token ids, which are not known inside jax.jit")
    return tokens
