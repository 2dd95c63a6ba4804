"""What quasi-rejection sampling gives up for its acceptance rate."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from infer_align._arguments import number, reals
from infer_align._numerics import logsumexp

__all__ = ["AcceptanceCurve", "acceptance_curve", "choose_log_beta"]


class AcceptanceCurve(NamedTuple):
    """The price of quasi-rejection at each β; arrays of shape (k, *contexts)."""

    log_betas: np.ndarray
    acceptance_rate: np.ndarray
    """Z_β / β."""
    total_variation: np.ndarray
    """TVD(p, p_β)."""
    total_variation_bound: np.ndarray
    """1 − p(A_β), A_β = {y : P(y)/q(y) ≤ β}: at least the distance."""
    forward_kl: np.ndarray
    """KL(p‖p_β), in nats."""


def acceptance_curve(
    log_weights: Float[np.ndarray, "n *contexts"],
    log_betas: Any,
    *,
    log_proposal: Float[np.ndarray, "n *contexts"] | None = None,
) -> AcceptanceCurve:
    r"""Acceptance rate of quasi-rejection sampling and its distance from the target, against β.

    .. math:: Z_β = E_q[\min(w, β)], \quad \mathrm{AR} = \frac{Z_β}{β}, \quad
        \mathrm{TVD}(p, p_β) = \tfrac12 E_q\left|\frac{w}{Z} - \frac{\min(w, β)}{Z_β}\right|
        \le 1 - p(A_β), \quad
        \mathrm{KL}(p‖p_β) = \frac1Z E_q\left[w \log\frac{w}{\min(w, β)}\right]
        + \log\frac{Z_β}{Z}

    with w = P/q (Eikema et al. 2022, arXiv 2112.05702). On draws of q these are estimates; on all
    outcomes of an enumerated space, with ``log_proposal``, they are exact.

    Parameters
    ----------
    log_weights : array, shape (n, *contexts)
        log P − log q of draws of q, or of every outcome.
    log_betas : float or array, shape (k,) or (k, *contexts)
    log_proposal : array, shape (n, *contexts), optional
        log q of every outcome. None: the outcomes are draws, and count equally.

    Returns
    -------
    AcceptanceCurve
        Without an accepted outcome nothing is known of p: the distances are then their largest
        values, 1, 1 and ∞.

    Raises
    ------
    ValueError
        For a β that is not finite, or weights that are NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.stats import poisson
    >>> from infer_align.samplers import acceptance_curve
    >>> y = np.arange(200)
    >>> log_q = poisson(10).logpmf(y)
    >>> curve = acceptance_curve(poisson(11).logpmf(y) - log_q, np.log([1.0, 2.0]),
    ...                          log_proposal=log_q)
    >>> curve.acceptance_rate.round(4).tolist(), curve.total_variation.round(4).tolist()
    ([0.8768, 0.4982], [0.0749, 0.0035])
    """
    w, q = _weighted(log_weights, log_proposal)
    betas = np.atleast_1d(reals("log_betas", log_betas))
    if not betas.size or not np.all(np.isfinite(betas)):
        raise ValueError(f"every log β, at least one, must be finite, got {log_betas}")
    betas = betas.reshape(*betas.shape, *(1,) * (w.ndim - betas.ndim))
    betas = np.broadcast_to(betas, (len(betas), *w.shape[1:]))
    rows = [_at(w, q, beta) for beta in betas]
    return AcceptanceCurve(betas.copy(), *(np.stack(x) for x in zip(*rows, strict=True)))


def _at(w: np.ndarray, q: np.ndarray, beta: Any) -> tuple[Any, ...]:
    """The four numbers at one log β of shape (*contexts)."""
    least = np.minimum(w, beta)
    log_z, log_z_beta = logsumexp(w + q), logsumexp(least + q)
    known = log_z > -math.inf
    z, z_beta = np.where(known, log_z, 0.0), np.where(known, log_z_beta, 0.0)
    p, p_beta = np.exp(w + q - z), np.exp(least + q - z_beta)
    lost = np.where(w > -math.inf, w - np.where(w > -math.inf, least, 0.0), 0.0)
    tvd = 0.5 * np.abs(p - p_beta).sum(axis=0)
    bound = np.where(w > beta, p, 0.0).sum(axis=0)
    kl = np.where(p > 0, p * lost, 0.0).sum(axis=0) + z_beta - z
    return (
        np.exp(log_z_beta - beta),
        np.where(known, tvd, 1.0),
        np.where(known, bound, 1.0),
        np.where(known, np.maximum(kl, 0.0), math.inf),
    )


def choose_log_beta(
    log_weights: Float[np.ndarray, "n *contexts"],
    *,
    acceptance_rate: float | None = None,
    total_variation_bound: float | None = None,
    log_proposal: Float[np.ndarray, "n *contexts"] | None = None,
) -> Any:
    """log β for a wanted acceptance rate, or for a bound on the distance from the target.

    Parameters
    ----------
    log_weights, log_proposal
        As for `acceptance_curve`.
    acceptance_rate : float, optional
        Between 0 and 1. The β is exact for these weights.
    total_variation_bound : float, optional
        The least β among the weights with 1 − p(A_β) at most this. Give it or the rate.

    Returns
    -------
    array, shape (*contexts)
        For `quasi_rejection`. With the largest log-weight or more it is rejection sampling, as
        far as these weights know.

    Raises
    ------
    ValueError
        Unless exactly one of the two is given, if nothing is accepted, or if the target rejects so
        much that no β has the rate.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.samplers import acceptance_curve, choose_log_beta
    >>> log_weights = np.log([0.5, 1.0, 4.0])
    >>> log_beta = choose_log_beta(log_weights, acceptance_rate=0.5)
    >>> round(float(np.exp(log_beta)), 6)           # (0.5/β + 1/β + 1)/3 = 1/2
    3.0
    >>> round(float(np.exp(choose_log_beta(log_weights, total_variation_bound=0.1))), 6)
    4.0
    """
    if (acceptance_rate is None) == (total_variation_bound is None):
        raise ValueError(
            "give either acceptance_rate or total_variation_bound, got "
            f"{acceptance_rate} and {total_variation_bound}"
        )
    if acceptance_rate is not None:
        acceptance_rate = number("acceptance_rate", acceptance_rate, need="a rate in (0, 1)")
    else:
        need = "a bound in [0, 1)"
        total_variation_bound = number("total_variation_bound", total_variation_bound, need=need)
    w, q = _weighted(log_weights, log_proposal)
    log_z = logsumexp(w + q)
    if np.any(log_z == -math.inf):
        raise ValueError(
            f"no outcome is accepted in {int((log_z == -math.inf).sum())} contexts, so their "
            "weights say nothing of β; draw more, or from a proposal closer to the target"
        )
    if acceptance_rate is not None:
        return _for_rate(w, q, log_z, acceptance_rate)
    assert total_variation_bound is not None
    return _for_bound(w, q, log_z, total_variation_bound)


def _for_rate(w: np.ndarray, q: np.ndarray, log_z: Any, rate: float) -> Any:
    """The rate falls as β grows, from the accepted share to 0: bisection in log β."""
    share = np.exp(logsumexp(np.where(w > -math.inf, q, -math.inf)))
    if not (0 < rate < 1) or np.any(rate > share):
        raise ValueError(
            f"an acceptance rate must lie in (0, 1) and below the share of proposals that the "
            f"target does not reject, {np.min(share):.3g}; got {rate}"
        )
    low = np.where(w > -math.inf, w, math.inf).min(axis=0)
    high = np.maximum(log_z - math.log(rate), low)  # Z_β ≤ Z
    for _ in range(200):
        middle = 0.5 * (low + high)
        above = logsumexp(np.minimum(w, middle) + q) - middle > math.log(rate)
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return high


def _for_bound(w: np.ndarray, q: np.ndarray, log_z: Any, bound: float) -> Any:
    """Mass of p above each weight, from the largest weight down."""
    if not 0 <= bound < 1:
        raise ValueError(f"a bound on the total variation distance must lie in [0, 1), got {bound}")
    order = np.argsort(w, axis=0)
    ordered = np.take_along_axis(w, order, axis=0)
    mass = np.take_along_axis(np.exp(w + q - log_z), order, axis=0)
    above = np.flip(np.cumsum(np.flip(mass, axis=0), axis=0), axis=0) - mass
    # Ties are one value: what counts is the mass above the last of them.
    enough = (above <= bound) & (ordered > -math.inf)
    first = np.argmax(enough, axis=0)
    return np.take_along_axis(ordered, first[None], axis=0)[0]


def _weighted(log_weights: Any, log_proposal: Any) -> tuple[np.ndarray, np.ndarray]:
    """Log-weights, and the logarithms of what each counts; (n, *contexts)."""
    w = reals("log_weights", log_weights, need="an array of log-weights", axes=1)
    if len(w) == 0 or np.any(np.isnan(w) | (w == math.inf)):
        raise ValueError("log-weights must be at least one, and finite or -inf")
    if log_proposal is None:
        return w, np.full(w.shape, -math.log(len(w)))
    q = reals("log_proposal", log_proposal, need="an array of log-probabilities")
    if q.shape != w.shape or np.isnan(q).any() or (q == math.inf).any():
        raise ValueError(
            f"log_proposal of shape {q.shape} must be one log-probability a weight, {w.shape}, "
            "finite or -inf"
        )
    return np.where(q > -math.inf, w, -math.inf), q
