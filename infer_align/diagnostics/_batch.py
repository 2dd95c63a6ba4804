"""`batch_metrics`: what a fit can say of itself from the batch it just drew."""

import math

import numpy as np

from infer_align._arguments import array, instance
from infer_align._numerics import Array, log_ratio, logmeanexp
from infer_align.diagnostics._draws import numpy
from infer_align.estimators import LogWeights


def batch_metrics(weights: LogWeights, log_prior: Array, log_potential: Array) -> dict[str, float]:
    r"""Estimates from one batch, averaged over contexts: for curves, not for claims.

    Expectations under the policy are importance-weighted means, unbiased on- and off-policy:

    .. math:: E_π[x] ≈ \frac1n \sum_i \frac{π_i}{q_i} x_i

    Those under the target, whose normaliser is not known, are self-normalised in P/q. At the n of
    a fit all are noisy, and log Z (so ``reverse_kl`` too) is low by about 1/(2·ESS); `assess` on
    fresh draws has intervals.

    Parameters
    ----------
    weights : LogWeights
        Of shape (n, *contexts), any array library.
    log_prior, log_potential : array, shape (n, *contexts)

    Returns
    -------
    dict of str to float
        Under the policy, in nats: ``log_potential`` (of a tilt reward/β, and no reward; of
        accepted outcomes, each taken from the mean of the others), ``kl_prior``, ``reverse_kl``.
        Under the target: ``forward_kl`` (nats). Of the draws themselves: ``acceptance`` (the share
        that the target accepts), ``log_z`` (nats) and ``ess`` (share of n).

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import batch_metrics
    >>> from infer_align.estimators import LogWeights
    >>> prior, potential = np.log([0.5, 0.5]), np.array([0.0, 1.0])
    >>> m = batch_metrics(LogWeights(prior, prior + potential), prior, potential)
    >>> m["log_potential"], round(m["log_z"], 4)
    (0.5, 0.6201)
    """
    instance("weights", weights, LogWeights, "LogWeights(log_policy, log_target)")
    shape = tuple(array("log policy", weights.policy).shape)
    for what, x in (("log_prior", log_prior), ("log_potential", log_potential)):
        if tuple(array(what, x).shape) != shape:
            raise ValueError(
                f"{what} has shape {tuple(x.shape)} and log policy {shape}; all must be "
                "(n, *contexts), one number an outcome"
            )
    weights = LogWeights(*(None if x is None else numpy(x) for x in weights[:3]))
    log_prior, log_potential = numpy(log_prior), numpy(log_potential)
    accepted = weights.target > -math.inf
    v, log_w = weights.importance, weights.log_weight
    log_z = logmeanexp(log_w)
    some = log_z > -math.inf
    total = np.where(some, log_z + math.log(len(log_w)), 0.0)
    share = np.exp(log_w - total)  # self-normalised P/q
    d = log_ratio(weights.policy, weights.target)
    # π(accepted) as 1 - π(rejected): exactly 1 where nothing is rejected, whatever the weights.
    mass = 1 - np.where(accepted, 0.0, v).mean(axis=0)
    known = accepted.any(axis=0) & (mass > 0)
    potential = _policy_mean(v, log_potential, accepted, np.where(known, mass, 1.0))
    log_zero = np.where(some, log_z, 0.0)
    means = {
        "log_potential": np.where(known, potential, math.nan),
        "acceptance": accepted.mean(axis=0),
        "kl_prior": _sum(v, log_ratio(weights.policy, log_prior)) / len(v),
        # Rejected outcomes make KL(π‖p) infinite; without any accepted one log Z is -inf, too.
        "reverse_kl": _sum(v, d + log_zero) / len(v),
        "forward_kl": np.where(some, _sum(share, -d - log_zero), math.nan),
        "log_z": log_z,
        "ess": np.where(some, 1 / np.maximum((share**2).sum(axis=0), 1e-300) / len(log_w), 0.0),
    }
    return {name: float(np.mean(value)) for name, value in means.items()}


def never_moved(target: str, steps: int, acceptance: float) -> str:
    """What to say of a fit whose every step was skipped; the acceptance is the mean share."""
    remedy = (
        "soften the constraint, raise n, or start from a policy that meets it more often"
        if acceptance < 1
        else "the policy is at the target, or all its outcomes are alike"
    )
    return (
        f"all {steps} steps were skipped: every coefficient was 0, and the policy is what it was; "
        f"the target {target!r} accepted {acceptance:.1%} of the outcomes: {remedy}"
    )


def _policy_mean(v: Array, x: Array, accepted: Array, mass: Array) -> Array:
    """E_π[x | accepted] from the weights π/q, whose mean is 1 only in expectation.

    What it misses of 1 would multiply an offset of x. Each x is taken from the mean of the others,
    which adds nothing in expectation; a single one has none.
    """
    number = accepted.sum(axis=0)
    top = np.where(accepted, x, -math.inf).max(axis=0)
    x = np.where(accepted, x - np.where(number > 1, top, 0.0), 0.0)
    others = np.where(accepted & (number > 1), (x.sum(axis=0) - x) / np.maximum(number - 1, 1), 0.0)
    level = others.sum(axis=0) / np.maximum(number, 1) + np.where(number > 1, top, 0.0)
    return level + np.where(accepted, v * (x - others), 0.0).mean(axis=0) / mass


def _sum(weight: Array, value: Array) -> Array:
    """Σ weight · value over outcomes, with 0 · inf = 0."""
    return np.sum(np.where(weight > 0, weight, 0.0) * np.where(weight > 0, value, 0.0), axis=0)
