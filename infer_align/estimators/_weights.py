"""`LogWeights`: all that an estimator or a diagnostic sees of a batch."""

from typing import Any, NamedTuple

from jaxtyping import Float, Int

from infer_align._numerics import Array, log_ratio, namespace


class LogWeights(NamedTuple):
    """Log-probabilities of a batch of outcomes, in nats, of shape ``(n, *contexts)``.

    Parameters
    ----------
    policy : array, shape (n, *contexts)
        log π(y | x), normalised.
    target : array, shape (n, *contexts)
        log P(y | x) up to a constant per context; ``-inf`` where the target rejects.
    proposal : array, shape (n, *contexts), optional
        log q(y | x), normalised, of the distribution the outcomes were drawn from. ``None``
        says that they were drawn from the policy.
    context : integer array, shape (*contexts), optional
        Which context each column is, for the rules that remember contexts across steps.

    Examples
    --------
    >>> import numpy as np
    >>> w = LogWeights(policy=np.log([0.5, 0.5]), target=np.log([0.1, 0.3]))
    >>> np.exp(w.log_weight)
    array([0.2, 0.6])
    """

    policy: Float[Any, "n *contexts"]
    target: Float[Any, "n *contexts"]
    proposal: Float[Any, "n *contexts"] | None = None
    context: Int[Any, "*contexts"] | None = None

    @property
    def log_weight(self) -> Array:
        """log P/q: importance weights for the target."""
        drawn_from = self.policy if self.proposal is None else self.proposal
        return log_ratio(self.target, drawn_from)

    @property
    def importance(self) -> Array:
        """π/q: importance weights for the policy, 1 on-policy."""
        xp = namespace(self.policy)
        if self.proposal is None:
            return xp.ones_like(self.policy)
        return xp.exp(log_ratio(self.policy, self.proposal))
