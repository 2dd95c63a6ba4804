"""Maximum likelihood: the forward KL from samples of the target."""

from infer_align._numerics import Array, namespace
from infer_align.estimators._core import Claim, Estimator, State, Update, sizes
from infer_align.estimators._weights import LogWeights

SAMPLES = frozenset({"samples"})


def maximum_likelihood() -> Estimator:
    r"""Maximum likelihood of samples of the target: supervised fine-tuning.

    .. math:: c_i = -\frac1n, \qquad y_i \sim p

    The gradient of −E_p[log π], which is that of KL(p‖π). The fits draw the batch from the target
    in place of the policy: from `demonstrations` by their weights (reward-weighted regression,
    filtered and best-of-n distillation are this with other weights), or from a ``teacher``.

    Returns
    -------
    Estimator

    Requirements
    ------------
    Samples of the target; no density. In `LogWeights` they are a batch with a proposal, the law
    of the data, whose log-probability may be any number.

    Estimates
    ---------
    ∇KL(p‖π), unbiased, with p the law that the data are drawn from; of a data set, its weighted
    empirical law. Refused on-policy: the policy's own draws have an expected gradient of 0.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import estimators
    >>> e = estimators.maximum_likelihood()
    >>> w = estimators.LogWeights(np.log([0.5, 0.25]), target=np.zeros(2), proposal=np.zeros(2))
    >>> e.update(e.init(), w).coefficients
    array([-0.5, -0.5])
    """

    def update(state: State, weights: LogWeights) -> Update:
        n, contexts = sizes(weights, 1, "maximum likelihood")
        xp = namespace(weights.policy)
        return Update(xp.full_like(weights.policy, -1.0 / (n * contexts)), state, {})

    return Estimator(
        dict,
        update,
        "maximum_likelihood",
        _cross_entropy,
        on_policy=Claim.REFUSED,
        fixed_point="data",
        requires=SAMPLES,
    )


def _cross_entropy(log_policy: Array, log_density: Array, log_proposal: Array | None) -> Array:
    """−E[log π] over the law of the data; of the policy's own, the entropy."""
    xp = namespace(log_policy)
    drawn = xp.exp(log_policy if log_proposal is None else log_proposal)
    return -xp.sum(xp.where(drawn > 0, drawn * xp.where(drawn > 0, log_policy, 0.0), 0.0), axis=0)
