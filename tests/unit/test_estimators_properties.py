"""What must not change an estimator's coefficients, on arbitrary log-weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infer_align import divergences, estimators
from infer_align.estimators import LogWeights

FREE_OF_Z = [
    estimators.f_dpg(divergences.jensen_shannon),
    estimators.f_dpg(divergences.forward_kl, log_z=estimators.batch_log_z(leave_one_out=True)),
    estimators.vargrad(),
    estimators.reinforce(),
]
LOG = st.floats(-6, 0)
PAIRS = hnp.arrays(float, st.tuples(st.just(3), st.integers(2, 6)), elements=LOG)


def coefficients(estimator, weights):
    return estimator.update(estimator.init(), weights).coefficients


@pytest.mark.parametrize("estimator", FREE_OF_Z, ids=lambda e: e.name)
@settings(deadline=None, max_examples=50)
@given(arrays=PAIRS, shift=st.floats(-30, 30))
def test_a_constant_on_the_target_changes_nothing(estimator, arrays, shift):
    """An unnormalised density is known up to a constant: no coefficient may depend on it."""
    policy, target, proposal = arrays
    for q in (None, proposal):
        a = coefficients(estimator, LogWeights(policy, target, q))
        b = coefficients(estimator, LogWeights(policy, target + shift, q))
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * max(1, np.abs(a).max()))


@pytest.mark.parametrize("estimator", estimators.ALL, ids=lambda e: e.name)
@settings(deadline=None, max_examples=25)
@given(arrays=PAIRS, seed=st.integers(0, 99))
def test_permutation_equivariance(estimator, arrays, seed):
    """Outcomes have no order: permuting them permutes the coefficients."""
    policy, target, _ = arrays
    order = np.random.default_rng(seed).permutation(len(policy))
    a = coefficients(estimator, LogWeights(policy, target, context=np.asarray(0)))
    b = coefficients(estimator, LogWeights(policy[order], target[order], context=np.asarray(0)))
    np.testing.assert_allclose(a[order], b, rtol=1e-9, atol=1e-12 * max(1, np.abs(a).max()))


@pytest.mark.parametrize("divergence", divergences.ALL, ids=lambda d: d.name)
@settings(deadline=None, max_examples=25)
@given(policy=hnp.arrays(float, 5, elements=LOG))
def test_coefficients_vanish_at_the_target(divergence, policy):
    """Where the policy is the target, every coefficient is 0: its fixed point, and ESS = n."""
    policy = policy - np.log(np.exp(policy).sum())
    estimator = estimators.f_dpg(divergence)
    c = coefficients(estimator, LogWeights(policy, policy + 2.5))
    np.testing.assert_allclose(c, 0.0, atol=1e-12)
