"""Squared-residual losses on log π − log P: log-variance and trajectory balance."""

from infer_align._arguments import instance
from infer_align._numerics import Array, namespace
from infer_align.estimators._core import (
    Estimator,
    State,
    Update,
    mean_of,
    reverse_kl_loss,
    sizes,
)
from infer_align.estimators._log_z import LogZ, learnt_log_z
from infer_align.estimators._weights import LogWeights


def vargrad() -> Estimator:
    r"""VarGrad, the log-variance loss: ½ Var_q[log π − log P] over the batch.

    .. math:: c_i = \frac{1}{n-1} (d_i - \bar d), \quad d = \log π - \log P

    Richter et al. 2020 (arXiv 2010.10436), eq. 10. On-policy it equals REINFORCE with a
    leave-one-out baseline.

    Returns
    -------
    Estimator

    Requirements
    ------------
    log P up to a constant, finite on every outcome; at least 2 outcomes per context. The
    proposal need not be known.

    Estimates
    ---------
    On-policy ∇KL(π‖p), unbiased. Off-policy ∇½Var_q[log π − log P], unbiased, with the same
    fixed point and no importance weights.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import estimators
    >>> e = estimators.vargrad()
    >>> w = estimators.LogWeights(policy=np.log([0.5, 0.5]), target=np.asarray([0.0, 1.0]))
    >>> e.update(e.init(), w).coefficients
    array([ 0.5, -0.5])
    """

    def update(state: State, weights: LogWeights) -> Update:
        n, contexts = sizes(weights, 2, "the log-variance loss")
        xp = namespace(weights.policy, weights.target)
        d = weights.policy - weights.target
        c = (d - xp.mean(d, axis=0, keepdims=True)) / ((n - 1) * contexts)
        return Update(c, state, {})

    return Estimator(
        dict,
        update,
        "vargrad",
        _log_variance_loss,
        hard_constraints=False,
        min_outcomes=2,
    )


def trajectory_balance(*, log_z: LogZ | None = None) -> Estimator:
    r"""Trajectory balance: ½ E_q[(log π − log P + log Z)²].

    .. math:: c_i = \frac1n (\log π_i - \log P_i + \log Z)

    Malkin et al. 2022 (arXiv 2201.13259), eq. 14; for language models the squared residual of
    the KL-regularised posterior. A learnt log Z is part of the estimator's state and descends
    the same loss.

    Parameters
    ----------
    log_z : LogZ, optional
        `learnt_log_z` (default) or `known_log_z`.

    Returns
    -------
    Estimator

    Requirements
    ------------
    log P up to a constant, finite on every outcome. The proposal need not be known.

    Estimates
    ---------
    On-policy ∇KL(π‖p), unbiased for any log Z. Off-policy the gradient of its own loss,
    unbiased, whose minimum is the target where log Z is right (known, or learnt jointly).

    Raises
    ------
    TypeError
        For a log-Z rule that is none.
    ValueError
        For a log-Z rule that depends on the batch (that is `vargrad`); at an update, for a context
        that the rule has no number for: several contexts need
        ``learnt_log_z(np.zeros(number of contexts))``.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import estimators
    >>> e = estimators.trajectory_balance(log_z=estimators.known_log_z(1.0))
    >>> w = estimators.LogWeights(policy=np.zeros(2), target=np.asarray([1.0, 0.0]))
    >>> e.update(e.init(), w).coefficients
    array([0. , 0.5])
    """
    rule = learnt_log_z() if log_z is None else log_z
    instance("log_z", rule, LogZ, "learnt_log_z()")
    if not (rule.learnt or rule.known):
        raise ValueError(
            f"trajectory_balance needs a learnt or a known log Z, got {rule.name}; with a batch "
            "estimate the loss is the log-variance: use vargrad()"
        )

    def update(state: State, weights: LogWeights) -> Update:
        n, contexts = sizes(weights, 1, "trajectory balance")
        log_zs, log_z_state = rule.update(state["log_z"], weights)
        d = weights.policy - weights.target + log_zs
        info = {"log_z": mean_of(log_zs)}
        return Update(d / (n * contexts), {"log_z": log_z_state}, info)

    def loss(log_policy: Array, log_density: Array, log_proposal: Array | None) -> Array:
        if log_proposal is None:
            return reverse_kl_loss(log_policy, log_density, None)
        xp = namespace(log_policy, log_density)
        d = log_policy - log_density + rule.value
        return xp.sum(xp.exp(log_proposal) * d**2, axis=0) / 2

    return Estimator(
        lambda: {"log_z": rule.init()},
        update,
        f"trajectory_balance({rule.name})",
        loss,
        hard_constraints=False,
    )


def _log_variance_loss(log_policy: Array, log_density: Array, log_proposal: Array | None) -> Array:
    if log_proposal is None:
        return reverse_kl_loss(log_policy, log_density, None)
    xp = namespace(log_policy, log_density)
    q, d = xp.exp(log_proposal), log_policy - log_density
    # About the mean: squares of an unknown log Z would leave no digits for their difference.
    return xp.sum(q * (d - xp.sum(q * d, axis=0)) ** 2, axis=0) / 2
