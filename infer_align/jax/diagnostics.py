"""`assess`: draw from a NumPyro policy and measure how close it is to a target."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from infer_align import diagnostics
from infer_align._arguments import array as checked_array
from infer_align._arguments import count
from infer_align._arguments import features as checked_features
from infer_align.diagnostics._unseen import if_prior
from infer_align.jax._batch import draw, weigh
from infer_align.jax._checks import check_context_arguments, check_key
from infer_align.jax.numpyro import Program
from infer_align.jax.numpyro import target as as_target
from infer_align.targets import Target, check_provides

if TYPE_CHECKING:
    import xarray

__all__ = ["assess"]


def assess(
    key: jax.Array,
    policy: Any,
    target: Target | Program,
    *,
    n: int = 2048,
    contexts: tuple[Any, ...] = (),
    proposal: Any = None,
    features: Mapping[str, Callable[..., Any]] | None = None,
    labels: Sequence[str] | Sequence[int] | None = None,
    level: float = 0.95,
) -> "xarray.DataTree":
    """Measure how close a policy is to a target, from fresh draws.

    The estimates, and where their intervals hold, are those of
    `infer_align.diagnostics.assess`, which this calls.

    Parameters
    ----------
    key : PRNG key
    policy : Distribution
        With batch shape (*contexts): ``policy(params, *contexts)`` of a conditional policy.
    target : NumPyro program or Target
    n : int
        Draws per context.
    contexts : tuple of arrays
        The target's arguments.
    proposal : Distribution, optional
        Draw from it in place of the policy, and weigh.
    features : mapping of name to callable, optional
        ``(y, *contexts) -> (n, *contexts)``: functions whose means are wanted.
    labels : sequence, optional
        Of the contexts.
    level : float
        Coverage of the intervals.

    Returns
    -------
    xarray.DataTree
        In NumPy float64, whatever JAX's precision.

    Raises
    ------
    ValueError
        For log-probabilities that are NaN, or whose shapes differ.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from infer_align import diagnostics, tilt
    >>> from infer_align.jax import assess
    >>> prior = dist.Categorical(probs=jnp.array([0.5, 0.3, 0.2]))
    >>> target = tilt(prior, lambda y: jnp.log(y + 1.0), beta=1.0)      # Z = 1.7
    >>> log_z = diagnostics.estimates(assess(jax.random.key(0), prior, target))["log_z"]
    >>> log_z.reliable, bool(log_z.low < jnp.log(1.7) < log_z.high)
    (True, True)
    """
    check_key(key)
    n, contexts = count("n", n), check_context_arguments(contexts)
    for what, one in (("policy", policy), ("proposal", proposal)):
        if not hasattr(one, "log_prob") and not (one is None and what == "proposal"):
            raise TypeError(
                f"the {what} is a distribution, got {type(one).__name__}; of a policy of `fit` it "
                "is policy(params, *contexts)"
            )
    named, declared = checked_features(features), as_target(target)
    check_provides(declared, frozenset({"log_density"}), "assess")

    @jax.jit
    def scored(key: jax.Array, contexts: tuple[Any, ...]) -> Any:
        batch = draw(key, policy, proposal, declared, n, contexts)
        values = {
            name: checked_array(f"feature {name!r}", f(batch.outcomes, *contexts))
            for name, f in named.items()
        }
        spread = declared.log_potential_se
        return batch, values, None if spread is None else spread(batch.outcomes, *contexts)

    batch, values, log_target_se = scored(key, contexts)
    weighed = weigh(batch, declared.name)
    drawn_from = weighed.weights.policy if proposal is None else weighed.weights.proposal
    return diagnostics.assess(
        weighed.weights,
        log_prior=weighed.log_prior,
        log_target_se=log_target_se,
        features=values or None,
        contexts=labels,
        outcomes=batch.outcomes,
        level=level,
        log_bound=if_prior(declared.log_bound, drawn_from, weighed.log_prior),
    )
