"""`compare`: by how much a fit brought the policy closer to its target."""

import math
from collections.abc import Sequence

import numpy as np

from infer_align._arguments import instance
from infer_align._numerics import Array, ties
from infer_align.diagnostics._draws import draws, per_context
from infer_align.diagnostics._estimates import Moments, moments, pooled_interval
from infer_align.diagnostics._summary import Estimate, check_level, seen, summarise
from infer_align.diagnostics._unseen import lengthen
from infer_align.divergences import FDivergence, forward_kl, reverse_kl
from infer_align.estimators import LogWeights


def compare(
    before: LogWeights,
    after: LogWeights,
    *,
    divergences: Sequence[FDivergence] = (reverse_kl, forward_kl),
    level: float = 0.95,
    log_bounds: tuple[float | Array | None, float | Array | None] = (None, None),
) -> dict[str, Estimate]:
    r"""Change of each divergence to the same target, after − before, with its interval.

    The two sets of draws are independent, each with its own policy; the contexts are paired, so
    that the difference is taken in each and then averaged:

    .. math:: \hat Δ = \frac1C \sum_x (\hat D'_x - \hat D_x), \qquad
              se² = \frac1{C²} \sum_x (se'^2_x + se^2_x)

    Parameters
    ----------
    before, after : LogWeights
        Of shape ``(n, *contexts)``, fresh draws with separate seeds; n may differ, the contexts
        may not. Both with log P of the same target, on the same scale.
    divergences : sequence of FDivergence
        What to compare.
    level : float
        Coverage of the intervals.
    log_bounds : pair of float or array of shape (*contexts), optional
        The ``log_bound`` of `assess`, of the draws before and of those after, which are of two
        laws: log M where P/q ≤ M is known of every outcome. Each side's intervals reach what it
        may have missed, and those of the difference what both may have.

    Returns
    -------
    dict of str to Estimate
        One difference a divergence, by name, and that of ``log_z``, which is 0 where both
        proposals cover the target. ``high < 0`` and ``reliable``: closer than before. Not
        reliable where either estimate is not, or where the two log Z disagree by 4 standard
        errors (other targets, or a policy that lost part of the target's support).

    Raises
    ------
    ValueError
        If the contexts differ.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align.diagnostics import compare
    >>> from infer_align.estimators import LogWeights
    >>> rng, log_target = np.random.default_rng(0), np.log([0.2, 0.5, 0.3])
    >>> def drawn(probs):
    ...     y = rng.choice(3, size=1000, p=probs)
    ...     return LogWeights(np.log(probs)[y], log_target[y])
    >>> change = compare(drawn([0.6, 0.2, 0.2]), drawn([0.25, 0.45, 0.3]))["forward_kl"]
    >>> change.reliable, change.high < 0
    (True, True)
    """
    check_level(level)
    for what, weights in (("before", before), ("after", after)):
        instance(what, weights, LogWeights, "LogWeights(log_policy, log_target)")
    if tuple(before.policy.shape[1:]) != tuple(after.policy.shape[1:]):
        raise ValueError(
            f"contexts of shape {tuple(before.policy.shape[1:])} before and "
            f"{tuple(after.policy.shape[1:])} after cannot be paired; draw for the same contexts"
        )
    if not isinstance(log_bounds, tuple | list) or len(log_bounds) != 2:
        raise TypeError(
            f"log_bounds is a pair, of the draws before and of those after, got {log_bounds!r}; "
            "write None where none is known"
        )
    shape = tuple(before.policy.shape[1:])
    bounds = [None if x is None else per_context(x, shape) for x in log_bounds]
    sides = [draws(weights) for weights in (before, after)]
    summaries = [
        summarise(side, divergences, level, log_bound=bound)
        for side, bound in zip(sides, bounds, strict=True)
    ]
    old, new = (
        {name: seen(m, summary.grounds, level) for name, m in moments(side, divergences).items()}
        for side, summary in zip(sides, summaries, strict=True)
    )
    reliable = {name: all(s.pooled[name].reliable for s in summaries) for name in old}
    names = ["log_z", *(divergence.name for divergence in divergences)]
    out = {name: _difference(old[name], new[name], level) for name in names}
    rounding = 10 * ties(np.abs(old["log_z"].value).max())
    same_z = abs(out["log_z"].value) <= 4 * out["log_z"].se + rounding  # False for NaN
    out = {
        name: change._replace(reliable=reliable[name] and same_z and math.isfinite(change.value))
        for name, change in out.items()
    }
    for summary, sign in zip(summaries, (-1, 1), strict=True):
        if summary.unseen is not None:
            pooled = summary.unseen.pooled
            out = {name: _reaching(change, *pooled[name][::sign]) for name, change in out.items()}
    return out


def _reaching(change: Estimate, down: float, up: float) -> Estimate:
    """A change that reaches as far below and above as what a side may have missed moves it."""
    ends = (np.atleast_1d(change.value - down), np.atleast_1d(change.value + up))
    column = lengthen(np.array(change, float)[:, None], *ends)
    value, se, low, high, reliable = (float(x) for x in column[:, 0])
    return Estimate(value, se, low, high, bool(reliable))


def _difference(old: Moments, new: Moments, level: float) -> Estimate:
    """Mean over contexts of new − old; from −inf to inf where it is not a number."""
    with np.errstate(invalid="ignore"):
        value = float((new.value - old.value).mean())
    se = math.sqrt(float((new.se**2 + old.se**2).sum())) / len(old.value)
    if math.isnan(value) or math.isinf(se):
        return Estimate(value, math.inf, -math.inf, math.inf, reliable=False)
    each = np.sqrt(new.se**2 + old.se**2)
    unit = np.where(each > 0, each, 1.0)
    sides = [(new.longer[k] * new.se + old.longer[1 - k] * old.se) / unit for k in (0, 1)]
    both = new._replace(
        value=new.value - old.value, se=each, third=new.third - old.third,
        fourth=new.fourth + old.fourth, bias=np.asarray(new.bias) - old.bias,
        longer=(sides[0], sides[1]),
    )  # fmt: skip
    value, se, low, high = (float(x) for x in pooled_interval(both, level))
    return Estimate(value, se, low, high, reliable=False)
