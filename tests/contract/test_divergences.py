"""Every divergence: its generator's contract, its directions, its normalisation, its limits."""

import math

import numpy as np
import pytest

from infer_align import divergences, testing
from tests.libraries import jax, jnp, torch

LIBRARIES = {"numpy": np, "jax": jnp, "torch": torch}
POLICY, TARGET = np.log([0.7, 0.2, 0.1]), np.log([0.2, 0.3, 0.5])
ids = {"ids": lambda d: d.name}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("divergence", divergences.ALL, **ids)
def test_contract(divergence, library):
    """The public contract check, which users run on their own divergences."""
    testing.check_divergence(divergence, LIBRARIES[library])


# By hand from the definitions, on an asymmetric pair (so that a swapped direction shows).
KL_P_PI = 0.2 * math.log(0.2 / 0.7) + 0.3 * math.log(0.3 / 0.2) + 0.5 * math.log(0.5 / 0.1)
KL_PI_P = 0.7 * math.log(0.7 / 0.2) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.5)
CHI2_PI_P = 0.5**2 / 0.2 + 0.1**2 / 0.3 + 0.4**2 / 0.5
CHI2_P_PI = 0.5**2 / 0.7 + 0.1**2 / 0.2 + 0.4**2 / 0.1
HELLINGER = sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in ((0.7, 0.2), (0.2, 0.3), (0.1, 0.5)))


def entropy(p):
    return -sum(x * math.log(x) for x in p)


JS = entropy([0.45, 0.25, 0.3]) - (entropy([0.7, 0.2, 0.1]) + entropy([0.2, 0.3, 0.5])) / 2


@pytest.mark.parametrize(
    ("divergence", "value"),
    [
        (divergences.forward_kl, KL_P_PI),
        (divergences.reverse_kl, KL_PI_P),
        (divergences.total_variation, 0.5),
        (divergences.jensen_shannon, JS),
        (divergences.pearson_chi2, CHI2_PI_P),
        (divergences.neyman_chi2, CHI2_P_PI),
        (divergences.squared_hellinger, HELLINGER),
        (divergences.alpha(2.0), CHI2_PI_P / 2),
        (divergences.alpha(-1.0), CHI2_P_PI / 2),
        (divergences.alpha(0.5), 2 * HELLINGER),
        (divergences.jeffreys, KL_P_PI + KL_PI_P),
        (divergences.mixed_chi2, CHI2_PI_P / 2 + KL_PI_P),
        (divergences.generalized_jensen_shannon(0.5), 4 * JS),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_direction_and_scale(divergence, value):
    """Directions and textbook normalisation, pinned on an asymmetric pair."""
    assert float(divergence(POLICY, TARGET)) == pytest.approx(value, rel=1e-12)


def test_mass_where_the_target_is_zero_counts():
    """DESIGN's counterexample: TV .4 and JS .16390, where Σ_{p>0} alone gives .2 and .02527."""
    p = np.array([math.log(0.5), math.log(0.5), -math.inf])
    policy = np.log([0.3, 0.3, 0.4])
    assert float(divergences.total_variation(policy, p)) == pytest.approx(0.4)
    assert float(divergences.jensen_shannon(policy, p)) == pytest.approx(0.16390, abs=5e-6)
    for d in divergences.ALL:
        assert math.isfinite(float(d(policy, p))) == d.bounded_where_target_is_zero
        assert math.isfinite(float(d(p, policy))) == d.bounded_where_policy_is_zero


@pytest.mark.parametrize("order", [-700.0, 700.0, -2000.0])
@pytest.mark.parametrize("divergence", divergences.ALL, **ids)
def test_no_nan_far_away(divergence, order):
    """Log-ratios beyond the floats' exponent give numbers or inf, never NaN."""
    policy = np.array([order, math.log(0.5), math.log(0.5)])
    target = np.log([0.4, 0.3, 0.3])
    assert not np.isnan(divergence(np.minimum(policy, -0.1), target))
    assert not np.isnan(divergence(target, np.minimum(policy, -0.1)))


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_families_tend_to_the_kls(gap):
    """Generalised JS and alpha are continuous at their ends, values and slopes."""
    log_t = np.linspace(-3, 3, 13)
    for family in (divergences.alpha, divergences.generalized_jensen_shannon):
        for near, end in ((gap, divergences.forward_kl), (1 - gap, divergences.reverse_kl)):
            d = family(near)
            scale = 60 * gap + 1e-7
            np.testing.assert_allclose(d(POLICY, TARGET), end(POLICY, TARGET), rtol=scale)
            np.testing.assert_allclose(d.f_prime(log_t), end.f_prime(log_t), atol=50 * scale)
        assert family(0.0) is divergences.forward_kl
        assert family(1.0) is divergences.reverse_kl


@pytest.mark.parametrize("divergence", divergences.ALL, **ids)
def test_gradients_are_finite_under_hard_constraints(divergence):
    """Autodiff through the exact divergence has no NaN where either side is zero."""
    target = np.array([math.log(0.6), math.log(0.4), -math.inf])
    log_policy = lambda x: jax.nn.log_softmax(x)
    g = jax.grad(lambda x: divergence(log_policy(x), jnp.asarray(target)))(jnp.zeros(3))
    assert not np.isnan(np.asarray(g)).any() or not divergence.bounded_where_target_is_zero
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = divergence(torch.log_softmax(logits, 0), torch.as_tensor(target))
    (g,) = torch.autograd.grad(value, logits)
    assert not torch.isnan(g).any()


def test_bad_parameters_raise():
    """Weights and orders outside their range say what they must be."""
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.2"):
        divergences.generalized_jensen_shannon(1.2)
    with pytest.raises(ValueError, match="finite number, got inf"):
        divergences.alpha(math.inf)
