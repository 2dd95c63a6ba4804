"""`Estimator`, its claims, and the checks that refuse what cannot be right."""

import math
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from infer_align._arguments import instance
from infer_align._numerics import Array, as_real, logsumexp, namespace
from infer_align.divergences import reverse_kl
from infer_align.estimators._weights import LogWeights

INF = math.inf
LOG_DENSITY = frozenset({"log_density"})
State = dict[str, Any]
"""What an estimator carries from step to step: a nested dict of numbers."""


class Claim(Enum):
    """What the expectation of an estimator's gradient is; every claim is enumerated in the tests.

    ``UNBIASED``: the gradient of the estimator's ``loss``. ``SCALED``: (1 − 1/n) times it.
    ``INDEPENDENT_Z``: the gradient with a Ẑ from other outcomes in place of Z, averaged over Ẑ.
    ``CONSISTENT``: the gradient up to a bias of order 1/n. ``BIASED``: its own expectation
    (truncation, clipping), reported as ``coefficient_bias``. ``REFUSED``: raises.
    """

    UNBIASED = "unbiased"
    SCALED = "scaled by 1 - 1/n"
    INDEPENDENT_Z = "unbiased at an independent log Z"
    CONSISTENT = "bias O(1/n)"
    BIASED = "biased by truncation or clipping"
    REFUSED = "refused"


class Update(NamedTuple):
    """Result of `Estimator.update`: coefficients (n, *contexts), new state, scalar diagnostics."""

    coefficients: Array
    state: State
    info: dict[str, Array]


class Estimator(NamedTuple):
    """A gradient estimator: a pair of pure functions and what can be said of them.

    Parameters
    ----------
    init : callable
        () → state, a nested dict of numbers.
    update : callable
        (state, LogWeights) → `Update`.
    name : str
        What it is, with its choices.
    loss : callable
        (log_policy, log_density, log_proposal or None) → the exact loss over all outcomes whose
        gradient in log_policy this estimates; the oracle of the tests.
    on_policy, off_policy : Claim
        The expectation of the gradient in each regime.
    fixed_point : str
        The distribution at which the expected gradient vanishes: ``"target"`` or a named variant
        (``"data"``: the law that the samples were drawn from).
    hard_constraints : bool
        Whether outcomes with target density 0 have finite coefficients.
    full_support : bool
        Whether the policy may miss outcomes of the target (False: it may, with finite loss).
    min_outcomes : int
        Outcomes needed per context.
    requires : frozenset of str
        What it needs of a target: ``"log_density"`` (up to Z), ``"samples"``, ``"next_token"``.
        ``targets.check_provides`` compares it with ``Target.provides``.
    """

    init: Callable[[], State]
    update: Callable[[State, LogWeights], Update]
    name: str
    loss: Callable[[Array, Array, Array | None], Array]
    on_policy: Claim = Claim.UNBIASED
    off_policy: Claim = Claim.UNBIASED
    fixed_point: str = "target"
    hard_constraints: bool = True
    full_support: bool = True
    min_outcomes: int = 1
    requires: frozenset[str] = LOG_DENSITY

    def __repr__(self) -> str:
        return f"Estimator({self.name})"


def check(estimator: Estimator, weights: LogWeights) -> None:
    """Refuse log-weights that this estimator cannot turn into a right gradient.

    Looks at values, so call it outside ``jit``; the ``fit`` functions do, once a step.

    Parameters
    ----------
    estimator : Estimator
    weights : LogWeights
        Of shape (n, *contexts), any array library.

    Raises
    ------
    TypeError
        For what is no estimator, or log-weights that are no real numbers.
    ValueError
        NaN or +inf entries; a hard constraint (target −inf) for an estimator whose coefficients
        are unbounded there; a policy that misses an outcome of the target where the loss is
        infinite; too few outcomes; an off-policy batch for an on-policy estimator, or the policy's
        own draws for one that needs the target's.
    """
    instance("the estimator", estimator, Estimator, "f_dpg(divergences.jensen_shannon)")
    instance("the weights", weights, LogWeights, "LogWeights(log_policy, log_target)")
    xp = namespace(weights.policy, weights.target)
    for name, x in zip(("policy", "target", "proposal"), weights[:3], strict=True):
        if x is None:
            continue
        as_real(x, f"log {name}")
        bad = int(xp.sum(xp.astype(xp.isnan(x) | (x == INF), xp.int64)))
        if bad:
            raise ValueError(
                f"log {name} has {bad} of {math.prod(x.shape)} entries that are NaN or +inf; "
                "log-densities must be finite, or -inf for a rejected outcome"
            )
    n = weights.policy.shape[0]
    if n < estimator.min_outcomes:
        raise ValueError(too_few(estimator.name, estimator.min_outcomes, n))
    if weights.proposal is not None and estimator.off_policy is Claim.REFUSED:
        raise ValueError(off_policy_mean(estimator.name))
    if weights.proposal is None and estimator.on_policy is Claim.REFUSED:
        raise ValueError(
            f"{estimator.name} needs outcomes drawn from the target, and these are the policy's "
            "own, on which its expected gradient is 0; say what they were drawn from with "
            "LogWeights(proposal=), or use f_dpg() or reinforce()"
        )
    rejected = weights.target == -INF
    if not estimator.hard_constraints and bool(xp.any(rejected & (weights.policy > -INF))):
        share = float(xp.mean(xp.astype(rejected, xp.float64)))
        raise ValueError(
            f"{estimator.name} has unbounded coefficients where the target is 0, and the target "
            f"rejects {share:.1%} of the outcomes; use f_dpg with forward_kl, jensen_shannon, "
            "total_variation, squared_hellinger, neyman_chi2 or alpha(a < 1), or soften the "
            "constraint"
        )
    if estimator.full_support and bool(xp.any((weights.policy == -INF) & ~rejected)):
        raise ValueError(
            f"the policy gives probability 0 to outcomes of the target, where {estimator.name} "
            "is infinite; start from a policy whose support covers the target's, or use "
            "jensen_shannon, total_variation or squared_hellinger"
        )


def checked_update(estimator: Estimator, state: State, weights: LogWeights) -> Update:
    """`check`, then the estimator's update, then a look at its coefficients: a step of a fit.

    Parameters
    ----------
    estimator : Estimator
    state : dict
        From ``estimator.init()``, or the update before.
    weights : LogWeights
        Of shape (n, *contexts), any array library; values are looked at, so not under ``jit``.

    Returns
    -------
    Update

    Raises
    ------
    ValueError
        As `check`, for another estimator's state, and for coefficients that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import estimators
    >>> e = estimators.vargrad()
    >>> w = estimators.LogWeights(policy=np.log([0.5, 0.5]), target=np.asarray([0.0, 1.0]))
    >>> estimators.checked_update(e, e.init(), w).coefficients
    array([ 0.5, -0.5])
    """
    check(estimator, weights)
    instance("the state", state, dict, "estimator.init()")
    if (given := _entries(state)) != (own := _entries(estimator.init())):
        raise ValueError(
            f"the state holds {', '.join(given) or 'nothing'}, and {estimator.name} keeps "
            f"{', '.join(own) or 'nothing'}: it is another estimator's, or was saved by another "
            "version; start from estimator.init()"
        )
    update = estimator.update(state, weights)
    xp = namespace(update.coefficients)
    if not bool(xp.all(xp.isfinite(update.coefficients))):
        raise ValueError(
            f"{estimator.name} gave coefficients that are not finite: the policy and the target "
            "(or the proposal) are too far apart for the floats; use a bounded divergence "
            "(jensen_shannon), or clip= and truncate="
        )
    return update


def _entries(state: Any, path: str = "") -> list[str]:
    """Names of what a state holds, nested ones with their paths."""
    if not isinstance(state, dict):
        return [path[1:]]
    return sorted(x for name, part in state.items() for x in _entries(part, f"{path}.{name}"))


def sizes(weights: LogWeights, needed: int, what: str) -> tuple[int, int]:
    n, *contexts = weights.policy.shape
    if weights.target.shape != weights.policy.shape:
        raise ValueError(
            f"log policy has shape {tuple(weights.policy.shape)} and log target "
            f"{tuple(weights.target.shape)}; both must be (n, *contexts): is a sum over tokens "
            "missing, or one too many?"
        )
    if weights.proposal is not None and weights.proposal.shape != weights.policy.shape:
        raise ValueError(
            f"log policy has shape {tuple(weights.policy.shape)} and log proposal "
            f"{tuple(weights.proposal.shape)}; both must be (n, *contexts)"
        )
    if weights.context is not None and tuple(np.shape(weights.context)) != tuple(contexts):
        raise ValueError(
            f"the context ids have shape {tuple(np.shape(weights.context))} and the log-weights "
            f"are for contexts of shape {tuple(contexts)}; give one id for each"
        )
    if n < needed:
        raise ValueError(too_few(what, needed, n))
    return n, math.prod(contexts)


def too_few(what: str, needed: int, n: int) -> str:
    return f"{what} needs at least {needed} outcomes per context, got {n}; raise n"


def off_policy_mean(name: str) -> str:
    return (
        f"{name}: a batch-mean baseline is biased off-policy (the outcome is in its own "
        "baseline); use leave_one_out(), running(), dpg() or none()"
    )


def mean_of(x: Array) -> Array:
    return namespace(x).mean(x)


def share_of(mask: Array) -> Array:
    xp = namespace(mask)
    return xp.mean(xp.where(mask, xp.ones(mask.shape), xp.zeros(mask.shape)))


def reverse_kl_loss(log_policy: Array, log_density: Array, log_proposal: Array | None) -> Array:
    return reverse_kl(log_policy, log_density - logsumexp(log_density, keepdims=True))
