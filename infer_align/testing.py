"""Contract checks for divergences and estimators, on any array library: public, for your own too.

An estimator's expectation over *every* batch of n outcomes is a finite sum on a small outcome
space, so what it estimates can be checked with no randomness and no tolerance argument.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from infer_align._numerics import Array, namespace
from infer_align.divergences import FDivergence
from infer_align.estimators import Claim, Estimator, LogWeights, State

__all__ = [
    "check_divergence",
    "check_estimator",
    "expected_coefficients",
    "expected_gradient",
]


def expected_coefficients(
    estimator: Estimator,
    log_policy: Array,
    log_density: Array,
    log_proposal: Array | None = None,
    *,
    n: int,
    state: State | None = None,
) -> Array:
    r"""Expected coefficient of each outcome, over every batch of n outcomes drawn from q.

    .. math:: C_k = \sum_{y_1..y_n} q(y_1)\cdots q(y_n) \sum_i c_i(y_{1..n})\, 1[y_i = k]

    so that the expected gradient is Σ_k C_k ∇log π(k). One call of ``update`` does them all: the
    batches stand on the context axis.

    Parameters
    ----------
    estimator : Estimator
    log_policy, log_density, log_proposal : array, shape (size,)
        Of all outcomes; the proposal only off-policy.
    n : int
        Outcomes in a batch; ``size ** n`` batches are enumerated.
    state : dict, optional
        The estimator's state; default its initial one.

    Returns
    -------
    array, shape (size,)

    Examples
    --------
    >>> import numpy as np
    >>> from infer_align import estimators, testing
    >>> policy, density = np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.2, 0.6])
    >>> c = testing.expected_coefficients(estimators.vargrad(), policy, density, n=2)
    >>> d = policy - density                        # ∇KL(π‖p) = Σ π (d − E d) ∇log π
    >>> bool(np.allclose(c, np.exp(policy) * (d - np.exp(policy) @ d)))
    True
    """
    xp = namespace(log_policy, log_density)
    size = log_policy.shape[0]
    batches = np.asarray(list(itertools.product(range(size), repeat=n))).T  # (n, size**n)
    index = xp.asarray(batches)
    drawn = log_policy if log_proposal is None else log_proposal
    log_q = xp.sum(_take(drawn, index), axis=0)
    weights = LogWeights(
        policy=_take(log_policy, index),
        target=_take(log_density, index),
        proposal=None if log_proposal is None else _take(log_proposal, index),
        context=xp.zeros_like(index[0]),
    )
    start = estimator.init() if state is None else state
    c = estimator.update(start, weights).coefficients * batches.shape[1]
    c = xp.where(log_q > -math.inf, c * xp.exp(log_q), 0.0)
    return xp.stack([xp.sum(xp.where(index == k, c, 0.0)) for k in range(size)])


def expected_gradient(coefficients: Array, log_policy: Array) -> Array:
    """Gradient in the logits of a softmax policy: C_k − π_k Σ_j C_j.

    Parameters
    ----------
    coefficients, log_policy : array, shape (size,)

    Returns
    -------
    array, shape (size,)
    """
    xp = namespace(coefficients, log_policy)
    return coefficients - xp.exp(log_policy) * xp.sum(coefficients)


def check_divergence(divergence: FDivergence, xp: Any = np) -> None:
    """Check a divergence's contract: generator, derivative, limits, dual, value.

    Parameters
    ----------
    divergence : FDivergence
    xp : module, optional
        An Array API namespace: ``numpy``, ``jax.numpy`` (with x64) or ``torch``.

    Raises
    ------
    AssertionError
        Naming the property that fails.
    """
    log_t = xp.asarray(np.linspace(-4.0, 4.0, 81))
    t = np.exp(np.linspace(-4.0, 4.0, 81))
    f, slope, dual = (np.asarray(g(log_t)) for g in _generators(divergence))
    name = divergence.name
    one = xp.asarray(np.zeros(1))
    for what, g in zip(("f(1)", "f'(1)", "dual(1)"), _generators(divergence), strict=True):
        assert abs(float(g(one)[0])) < 1e-12, f"{name}: {what} must be 0"
    assert (f >= -1e-15).all(), f"{name}: f must be non-negative"
    assert (np.diff(slope) >= -1e-12).all(), f"{name}: f' must not decrease (f is convex)"
    np.testing.assert_allclose(
        dual, np.asarray(divergence.f(-log_t)) * t, rtol=1e-9, atol=1e-12,
        err_msg=f"{name}: f_dual(log s) must be s f(1/s)",
    )  # fmt: skip
    step = 1e-5
    up, down = (np.asarray(divergence.f(log_t + s)) for s in (step, -step))
    numeric = (up - down) / (2 * step) / t
    smooth = np.abs(np.log(t)) > 2 * step  # total variation has a kink at 1
    np.testing.assert_allclose(
        slope[smooth], numeric[smooth], rtol=1e-6, atol=1e-8, err_msg=f"{name}: f' is not df/dt"
    )
    ends = xp.asarray(np.array([-math.inf, math.inf]))
    far = xp.asarray(np.array([-600.0, 600.0]))
    for what, g in (("f", divergence.f), ("f_prime", divergence.f_prime)):
        at, near = np.asarray(g(ends)), np.asarray(g(far))
        assert not np.isnan(at).any(), f"{name}: {what} is NaN at log t = ±inf"
        for limit, value in zip(at, near, strict=True):
            if math.isfinite(limit):
                assert abs(value - limit) < 1e-6, f"{name}: {what} misses its limit {limit}"
            else:
                assert value * math.copysign(1, limit) > 50, f"{name}: {what} must diverge"
    assert float(np.asarray(divergence.f_prime(ends))[1]) == divergence.f_prime_at_inf, (
        f"{name}: f'(∞) and the limit of the dual at 0 differ"
    )
    policy, target = np.log([0.5, 0.2, 0.3]), np.log([0.1, 0.6, 0.3])
    same = float(divergence(xp.asarray(target), xp.asarray(target)))
    value = float(divergence(xp.asarray(policy), xp.asarray(target)))
    direct = np.exp(target) @ np.asarray(divergence.f(xp.asarray(policy - target)))
    assert abs(same) < 1e-15, f"{name}: D(p‖p) must be 0"
    assert abs(value - direct) < 1e-12 * max(1, direct), f"{name}: value is not Σ p f(π/p)"


def check_estimator(
    estimator: Estimator,
    gradient: Callable[..., Array],
    xp: Any = np,
    *,
    n: int = 2,
    rtol: float = 1e-9,
) -> None:
    """Check an estimator's claim by enumerating every batch, on- and off-policy.

    Parameters
    ----------
    estimator : Estimator
    gradient : callable
        ``(loss, log_policy, log_density, log_proposal) -> (size,)``: the gradient of the
        estimator's exact loss in the logits of a softmax policy, by your automatic
        differentiation.
    xp : module, optional
        An Array API namespace.
    n : int
        Outcomes in a batch.
    rtol : float
        Relative tolerance.

    Raises
    ------
    AssertionError
        Where the expectation is not what the estimator claims.
    """
    policy = np.log([0.36, 0.24, 0.20, 0.12, 0.05, 0.03])
    density = np.log([0.10, 0.32, 0.05, 0.28, 0.17, 0.08])  # normalised: log Z = 0
    proposal = np.log([0.10, 0.15, 0.30, 0.20, 0.15, 0.10])
    for claim, q in ((estimator.on_policy, None), (estimator.off_policy, proposal)):
        if claim not in (Claim.UNBIASED, Claim.SCALED):
            continue
        arrays = [None if a is None else xp.asarray(a) for a in (policy, density, q)]
        c = expected_coefficients(estimator, *arrays, n=max(n, estimator.min_outcomes))
        got = np.asarray(expected_gradient(c, arrays[0]))
        want = np.asarray(gradient(estimator.loss, *arrays))
        if claim is Claim.SCALED:
            want = (1 - 1 / max(n, estimator.min_outcomes)) * want
        where = "on" if q is None else "off"
        np.testing.assert_allclose(
            got, want, rtol=rtol, atol=1e-12, err_msg=f"{estimator.name}, {where}-policy"
        )


def _generators(divergence: FDivergence) -> tuple[Callable[[Array], Array], ...]:
    return divergence.f, divergence.f_prime, divergence.f_dual


def _take(x: Array, index: Array) -> Array:
    xp = namespace(x)
    return xp.reshape(xp.take(x, xp.reshape(index, (-1,)), axis=0), index.shape)
