r"""Where in a sequence the policy departs from its prior, and how much it drifted per token.

KL(π‖ρ) and the entropy of π are sums over positions,

.. math:: KL(π‖ρ) = \sum_t E_{π}\Big[ 1[t < |y|]\; KL(π(·|y_{<t})‖ρ(·|y_{<t})) \Big],

and each term is the mean, over prefixes that have not ended, of a number per prefix: the log-ratio
of the token drawn there, or, with less variance and the same mean, the divergence of the two
next-token laws over the whole vocabulary (Rao–Blackwell; Amini, Vieira, Cotterell 2025, arXiv
2504.10637).
"""

import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from infer_align._numerics import Array
from infer_align._reliability import worth
from infer_align.diagnostics._draws import numpy
from infer_align.diagnostics._summary import Estimate, check_level


class ByPosition(NamedTuple):
    """The mean of a quantity at each position, pooled over contexts; all of shape (T,).

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import ByPosition
    >>> found = ByPosition(np.array([0.2, 0.1]), np.zeros(2), np.array([1.0, 0.5]))
    >>> found.per_token.tolist(), round(float(found.total), 6)
    ([0.2, 0.2], 0.3)
    """

    value: np.ndarray
    """E[1[t < |y|] x_t], in nats of a whole outcome: they sum to its total."""
    se: np.ndarray
    """Standard errors; 0 where the outcomes are all listed."""
    alive: np.ndarray
    """Share of the outcomes that reach position t."""

    @property
    def per_token(self) -> np.ndarray:
        """Mean over the outcomes that reach t: value / alive; NaN where none does."""
        return self._over(self.value)

    @property
    def per_token_se(self) -> np.ndarray:
        """Standard error of `per_token`, the number that reach t taken as given."""
        return self._over(self.se)

    @property
    def total(self) -> Any:
        """Sum over positions: KL(π‖ρ), or the entropy of π."""
        return self.value.sum()

    def _over(self, x: np.ndarray) -> np.ndarray:
        return np.where(self.alive > 0, x / np.where(self.alive > 0, self.alive, 1.0), math.nan)


def by_position(
    values: Float[Any, "n *contexts T"],
    lengths: Array,
    *,
    log_prob: Array | None = None,
) -> ByPosition:
    """Mean of a per-token quantity at each position of the outcomes that reach it.

    Parameters
    ----------
    values : array, shape (n, *contexts, T)
        One number a token, such as log π − log ρ of the token, −log π, or the KL of the two
        next-token laws there. What stands after an outcome's end is not read.
    lengths : array of int, shape (n, *contexts)
        Tokens of each outcome, its EOS included.
    log_prob : array, shape (n, *contexts), optional
        log π of the outcomes where these are all outcomes of a small space: the means are exact
        then. None: the outcomes are draws of π.

    Returns
    -------
    ByPosition

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import by_position
    >>> log_ratio = np.array([[0.1, 0.3], [0.3, 9.0]])  # the second ends after its first token
    >>> found = by_position(log_ratio, np.array([2, 1]))
    >>> found.value.round(3).tolist(), found.per_token.round(3).tolist()
    ([0.2, 0.15], [0.2, 0.3])
    """
    x, ends = numpy(values), _lengths(lengths)
    if x.shape[:-1] != ends.shape or not x.ndim > 1:
        raise ValueError(
            f"values has shape {x.shape} and lengths {ends.shape}; they must be (n, *contexts, T) "
            "and (n, *contexts)"
        )
    n, steps = len(x), x.shape[-1]
    if ends.max(initial=0) > steps:
        raise ValueError(
            f"an outcome has {ends.max():.0f} tokens and values only {steps} of each; give one "
            "number a token"
        )
    reaches = np.arange(steps) < ends[..., None]
    x = np.where(reaches, x, 0.0).reshape(n, -1, steps)
    reaches = reaches.reshape(n, -1, steps)
    if log_prob is not None:
        p = np.exp(numpy(log_prob)).reshape(n, -1, 1)
        if not np.allclose(p.sum(axis=0), 1.0, atol=1e-4):
            raise ValueError(
                "log_prob is that of all outcomes, whose probabilities sum to 1; they sum to "
                f"{p.sum(axis=0).round(4).ravel().tolist()}. Leave it out for draws."
            )
        x = np.where(p > 0, x, 0.0)
        mean = (p * x).sum(axis=0).mean(axis=0)
        return ByPosition(mean, np.zeros(steps), (p * reaches).sum(axis=0).mean(axis=0))
    spread = x.var(axis=0, ddof=1) / n if n > 1 else np.full(x.shape[1:], math.nan)
    se = np.sqrt(spread.sum(axis=0)) / x.shape[1]
    return ByPosition(x.mean(axis=(0, 1)), se, reaches.mean(axis=(0, 1)))


class Drift(NamedTuple):
    """How far a policy's draws are from ordinary text of its prior, per token.

    Examples
    --------
    >>> from infer_align.diagnostics import Drift, Estimate
    >>> one = Estimate(2.0, 0.1, 1.8, 2.2, reliable=True)
    >>> Drift(one, one).perplexity.value
    2.0
    """

    perplexity: Estimate
    """exp(−Σ log ρ / Σ |y|): the prior's perplexity of the draws."""
    kl_per_token: Estimate
    """Σ (log π − log ρ) / Σ |y|, in nats per token."""


def drift(
    log_policy: Float[Any, "n *contexts"],
    log_prior: Array,
    lengths: Array,
    *,
    level: float = 0.95,
) -> Drift:
    r"""Perplexity of a policy's draws under the prior, and KL(π‖ρ) per token.

    .. math:: \exp\Big( \frac{-\sum_i \log ρ(y_i)}{\sum_i |y_i|} \Big), \qquad
              \frac{\sum_i \log π(y_i) - \log ρ(y_i)}{\sum_i |y_i|}

    A perplexity far above that of the prior's own draws: the policy writes what the prior finds
    unlikely. One far below it: it repeats what the prior finds likely (look at `distinct_n`).

    Parameters
    ----------
    log_policy, log_prior : array, shape (n, *contexts)
        Of draws of the policy, in nats.
    lengths : array of int, shape (n, *contexts)
        Tokens of each outcome, its EOS included.
    level : float
        Coverage of the intervals, by the delta method for a ratio of means; those of the
        perplexity are those of its logarithm.

    Returns
    -------
    Drift
        Of all contexts together. Both are infinite once the prior gives a draw probability 0.
        Reliable by the rule of `assess`, from 200 draws on.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import drift
    >>> found = drift(np.log([0.5, 0.25]), np.log([0.25, 0.25]), np.array([1, 2]))
    >>> round(found.perplexity.value, 6), round(found.kl_per_token.value, 6)
    (2.519842, 0.231049)
    """
    check_level(level)
    policy, prior, ends = numpy(log_policy), numpy(log_prior), _lengths(lengths)
    if not policy.shape == prior.shape == ends.shape:
        raise ValueError(
            f"log_policy, log_prior and lengths have shapes {policy.shape}, {prior.shape} and "
            f"{ends.shape}; all must be (n, *contexts)"
        )
    if not ends.sum() > 0:
        raise ValueError("the outcomes have no tokens: lengths count their EOS, too")
    if np.isnan(policy).any() or np.isnan(prior).any():
        raise ValueError("log_policy or log_prior has NaN entries; find them with isnan")
    rate = _ratio(-prior, ends, level)
    value, low, high = (float(np.exp(x)) for x in (rate.value, rate.low, rate.high))
    perplexity = Estimate(value, value * rate.se, low, high, rate.reliable)
    return Drift(perplexity, _ratio(policy - prior, ends, level))


def _lengths(lengths: Array) -> np.ndarray:
    """Whole numbers, not negative."""
    ends = numpy(lengths)
    if not (np.isfinite(ends).all() and (ends >= 0).all() and (ends == np.floor(ends)).all()):
        raise ValueError("lengths counts tokens, EOS included: whole numbers that are not negative")
    return ends


def _ratio(total: np.ndarray, tokens: np.ndarray, level: float) -> Estimate:
    """Σ total / Σ tokens over draws and contexts; contexts are fixed."""
    n = len(total)
    total, tokens = total.reshape(n, -1), tokens.reshape(n, -1)
    if not np.isfinite(total).all():
        return Estimate(math.inf, math.inf, math.inf, math.inf, reliable=True)
    value = float(total.sum() / tokens.sum())
    if n < 2:
        return Estimate(value, math.inf, -math.inf, math.inf, reliable=False)
    residual = total - value * tokens
    se = math.sqrt(float(residual.var(axis=0, ddof=1).sum()) * n) / float(tokens.sum())
    half = NormalDist().inv_cdf(0.5 + level / 2) * se
    sure = bool(worth(np.zeros((n, 1)), khat=False).bears().all())  # of draws of equal weight
    return Estimate(value, se, value - half, value + half, reliable=sure)
