"""The score-function template and its two public faces, f-DPG and REINFORCE."""

import math
from collections.abc import Callable
from typing import Any

from infer_align._arguments import instance, positive
from infer_align._numerics import Array, log_ratio, logsumexp, namespace
from infer_align.divergences import FDivergence, reverse_kl
from infer_align.estimators._baselines import Baseline, leave_one_out
from infer_align.estimators._core import (
    Claim,
    Estimator,
    State,
    Update,
    mean_of,
    off_policy_mean,
    reverse_kl_loss,
    share_of,
    sizes,
)
from infer_align.estimators._log_z import LogZ, batch_log_z, known_log_z
from infer_align.estimators._weights import LogWeights

INF = math.inf


def f_dpg(
    divergence: FDivergence,
    *,
    log_z: LogZ | None = None,
    baseline: Baseline | None = None,
    truncate: float | None = None,
    clip: float | None = None,
) -> Estimator:
    r"""f-DPG: the score-function gradient of any f-divergence to the target.

    .. math:: c_i = \frac1n \frac{π_i}{q_i} \left( f'\!\left(\frac{π_i Z}{P_i}\right) - b_i \right)

    Go et al. 2023 (arXiv 2302.08215), eq. 5; with ``forward_kl`` it is DPG (Parshakova et al.
    2019; Khalifa et al. 2021), with ``alpha`` α-DPG, with ``reverse_kl`` KL-regularised RL.

    Parameters
    ----------
    divergence : FDivergence
        D_f(π‖p).
    log_z : LogZ, optional
        The rule for log Z. Default `batch_log_z`.
    baseline : Baseline, optional
        Default `leave_one_out`.
    truncate : float, optional
        Largest importance ratio π/q kept. Biased; ``coefficient_bias`` is reported.
    clip : float, optional
        Largest pseudo-reward −f' kept, as α-DPG does: its min((p/π)^{1−α} − 1, 10) is
        ``alpha(a)`` with ``clip=10 / (1 - a)``. Biased; ``coefficient_bias`` is reported.

    Returns
    -------
    Estimator

    Requirements
    ------------
    log P of the target up to a constant; log q of the proposal when off-policy. Under a hard
    constraint, a divergence with finite f'(∞).

    Estimates
    ---------
    ∇D_f(π‖p), averaged over contexts: unbiased with a known log Z and any baseline but `mean`
    (which scales it by 1 − 1/n, and is refused off-policy). An estimated Z from other outcomes
    (leave-one-out, earlier steps) gives the gradient at that Ẑ; the plain batch Z has a bias of
    order 1/n.

    Raises
    ------
    TypeError
        For a divergence, log-Z rule or baseline that is none.
    ValueError
        For a ``log_z`` rule that does not estimate log Z, or a bound that is not positive and
        finite.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import divergences, estimators
    >>> e = estimators.f_dpg(divergences.forward_kl, log_z=estimators.known_log_z(0.0),
    ...                      baseline=estimators.none())
    >>> w = estimators.LogWeights(policy=np.log([0.5, 0.25]), target=np.log([0.25, 0.75]))
    >>> e.update(e.init(), w).coefficients      # −(p/π)/n: classical DPG
    array([-0.25, -1.5 ])
    """
    instance("the divergence", divergence, FDivergence, "divergences.jensen_shannon")
    rule = batch_log_z() if log_z is None else log_z
    instance("log_z", rule, LogZ, "batch_log_z()")
    base = _baseline(baseline)
    if rule.learnt:
        raise ValueError(
            f"f_dpg needs an estimate of log Z, got {rule.name}, which converges to log Z only at "
            "the target; use batch_log_z(), running_log_z() or known_log_z(value)"
        )

    def loss(log_policy: Array, log_density: Array, log_proposal: Array | None) -> Array:
        return divergence(log_policy, log_density - logsumexp(log_density, keepdims=True))

    return _score_function(
        f"f_dpg({divergence.name}, {rule.name}, {base.name}",
        divergence.f_prime,
        divergence.f_prime_at_inf,
        rule,
        base,
        (truncate, clip),
        loss,
        full_support=not divergence.bounded_where_policy_is_zero,
    )


def reinforce(*, baseline: Baseline | None = None, truncate: float | None = None) -> Estimator:
    r"""REINFORCE on the KL-regularised reward, with the KL as k1 in the reward.

    .. math:: c_i = \frac1n \frac{π_i}{q_i} (\log π_i - \log P_i - b_i)

    With P = prior·exp(r/β) the signal is log(π/prior) − r/β. RLOO (Ahmadian et al. 2024,
    arXiv 2402.14740) is this with `leave_one_out`. The fixed point is the posterior itself
    (Korbak et al. 2022, arXiv 2205.11275).

    Parameters
    ----------
    baseline : Baseline, optional
        Default `leave_one_out`.
    truncate : float, optional
        Largest importance ratio π/q kept. Biased; ``coefficient_bias`` is reported.

    Returns
    -------
    Estimator

    Requirements
    ------------
    log P up to a constant, finite on every outcome (no hard constraint).

    Estimates
    ---------
    ∇KL(π‖p) (1/β times the gradient of β·KL(π‖prior) − E[r]): unbiased with every baseline but
    `mean`, which scales it by 1 − 1/n.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import estimators
    >>> e = estimators.reinforce()
    >>> w = estimators.LogWeights(policy=np.log([0.5, 0.5]), target=np.asarray([0.0, 1.0]))
    >>> e.update(e.init(), w).coefficients      # the outcome with the higher density rises
    array([ 0.5, -0.5])
    """
    base = _baseline(baseline)
    return _score_function(
        f"reinforce({base.name}",
        reverse_kl.f_prime,
        INF,
        known_log_z(0.0),
        base,
        (truncate, None),
        reverse_kl_loss,
        full_support=False,
    )


def _baseline(given: Any) -> Baseline:
    base = leave_one_out() if given is None else given
    return instance("the baseline", base, Baseline, "leave_one_out()")


def _score_function(
    name: str,
    f_prime: Callable[[Array], Array],
    f_prime_at_inf: float,
    rule: LogZ,
    base: Baseline,
    bounds: tuple[Any, Any],
    loss: Callable[[Array, Array, Array | None], Array],
    *,
    full_support: bool,
) -> Estimator:
    """c_i = (π/q)_i (f'(t_i) − b_i) / n: the one template behind f-DPG and REINFORCE."""
    need = "positive and finite (left out: no bound)"
    truncate, clip = (
        None if bound is None else positive(what, bound, need=need)
        for what, bound in zip(("truncate", "clip"), bounds, strict=True)
    )

    kept_below = (("truncate", truncate), ("clip", clip))
    name += "".join(f", {what}={bound:g}" for what, bound in kept_below if bound is not None) + ")"

    def update(state: State, weights: LogWeights) -> Update:
        n, contexts = sizes(weights, base.min_outcomes, f"a {base.name} baseline")
        if weights.proposal is not None and not base.off_policy:
            raise ValueError(off_policy_mean(name))
        xp = namespace(weights.policy, weights.target)
        log_zs, log_z_state = rule.update(state["log_z"], weights)
        defined = log_zs > -INF
        # signal[j, i]: f' of outcome j at the Ẑ that outcome i uses (one column if shared).
        log_t = log_ratio(weights.policy, weights.target)[:, None, ...]
        shift = xp.where(defined, log_zs, 0.0)[None, ...]
        exact = xp.where(defined[None, ...], f_prime(log_t + shift), 0.0)
        signal = exact if clip is None else xp.where(exact < -clip, -clip, exact)
        ratio = weights.importance
        kept = ratio if truncate is None else xp.where(ratio > truncate, truncate, ratio)

        def coefficients(signal: Array, ratio: Array) -> tuple[Array, State]:
            b, base_state = base.update(state["baseline"], signal, ratio, f_prime_at_inf)
            # 0 · (±inf) is 0 here: an outcome that the policy never draws has no score.
            excess = xp.where(ratio > 0, _own(signal) - b, 0.0)
            return xp.where(defined, ratio * excess, 0.0) / (n * contexts), base_state

        c, base_state = coefficients(signal, kept)
        info = {"log_z": mean_of(xp.where(defined, log_zs, 0.0)), "undefined": share_of(~defined)}
        if truncate is not None or clip is not None:
            gap = xp.abs(c - coefficients(exact, ratio)[0])
            info["coefficient_bias"] = xp.sum(gap)
        return Update(c, {"log_z": log_z_state, "baseline": base_state}, info)

    exact_bounds = truncate is None and clip is None
    return Estimator(
        lambda: {"log_z": rule.init(), "baseline": base.init()},
        update,
        name,
        loss,
        on_policy=_claim(rule, base, exact=exact_bounds),
        off_policy=_claim(rule, base, exact=exact_bounds) if base.off_policy else Claim.REFUSED,
        hard_constraints=math.isfinite(f_prime_at_inf),
        full_support=full_support,
        min_outcomes=max(base.min_outcomes, rule.min_outcomes),
    )


def _claim(rule: LogZ, base: Baseline, *, exact: bool) -> Claim:
    if not exact:
        return Claim.BIASED
    if not rule.independent:
        return Claim.CONSISTENT
    if not base.off_policy:  # the batch mean, which contains the outcome itself
        return Claim.SCALED if rule.known else Claim.CONSISTENT
    return Claim.UNBIASED if rule.known else Claim.INDEPENDENT_Z


def _own(signal: Array) -> Array:
    """signal[i, i] (or the one shared column): what each outcome has at its own Ẑ."""
    if signal.shape[1] == 1:
        return signal[:, 0, ...]
    xp = namespace(signal)
    rows = xp.arange(signal.shape[0])
    return signal[rows, rows, ...]
