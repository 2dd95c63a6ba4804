"""Targets and their combinators, on NumPyro and torch distributions alike."""

import math

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as ndist
import pyro.distributions as pdist
import pytest
import torch

from infer_align import Target, condition, indicator, product, tilt

P = np.array([0.5, 0.3, 0.2])
REWARD = np.array([1.0, -2.0, 0.5])


def numpyro_case():
    return ndist.Categorical(probs=jnp.asarray(P)), jnp.arange(3), jnp.asarray(REWARD)


def torch_case():
    return pdist.Categorical(torch.as_tensor(P)), torch.arange(3), torch.as_tensor(REWARD)


CASES = pytest.mark.parametrize("case", [numpyro_case, torch_case])


@CASES
def test_tilt_divides_by_beta(case):
    """P = prior exp(reward / beta): beta is a temperature."""
    prior, y, reward = case()
    target = tilt(prior, lambda y: reward[y], beta=0.5)
    np.testing.assert_allclose(np.asarray(target.log_density(y)), np.log(P) + REWARD / 0.5)
    assert target.given() is prior


@CASES
def test_condition_rejects_with_minus_infinity(case):
    """Outcomes that are not accepted have log-density -inf, whatever the prior says."""
    prior, y, _ = case()
    target = condition(prior, lambda y: y != 1)
    np.testing.assert_allclose(
        np.asarray(target.log_density(y)), [math.log(0.5), -math.inf, math.log(0.2)]
    )


@CASES
def test_product_takes_targets_distributions_and_potentials(case):
    """Each kind of factor multiplies in what it is."""
    prior, y, reward = case()
    other = type(prior)(probs=prior.probs[(y + 1) % 3])
    tilted = tilt(prior, lambda y: reward[y], beta=2.0)
    target = product(tilted, other, lambda y: 0.1 * reward[y], condition(prior, lambda y: y < 2))
    want = 2 * np.log(P) + np.log(P[[1, 2, 0]]) + REWARD * (0.5 + 0.1)
    want[2] = -math.inf
    np.testing.assert_allclose(np.asarray(target.log_density(y)), want)


@CASES
def test_combinators_compose_in_any_order(case):
    """Tilting a condition is conditioning a tilt."""
    prior, y, reward = case()
    a = tilt(condition(prior, lambda y: y > 0), lambda y: reward[y], beta=0.7)
    b = condition(tilt(prior, lambda y: reward[y], beta=0.7), lambda y: y > 0)
    np.testing.assert_allclose(np.asarray(a.log_density(y)), np.asarray(b.log_density(y)))


def test_conditional_target_gets_its_contexts():
    """A callable prior and the potential both see the contexts; one Z for each."""
    table = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    prior = lambda x: pdist.Categorical(table[x])
    target = tilt(prior, lambda y, x: 1.0 * (y == x), beta=1.0)
    y, x = torch.tensor([[0, 1], [2, 2]]), torch.tensor([0, 1])
    want = np.log([[0.5, 0.1], [0.2, 0.8]]) + np.array([[1, 1], [0, 0]])
    np.testing.assert_allclose(target.log_density(y, x).numpy(), want)


def test_a_potential_of_the_wrong_shape_is_refused():
    """A stray .sum() would give wrong weights with no error; broadcasting is not accepted."""
    prior = ndist.Categorical(probs=jnp.asarray(P)).expand([4]).to_event(1)
    y = jnp.zeros((5, 4), int)
    for bad in (lambda y: y.sum(), lambda y: 1.0 * y):
        with pytest.raises(ValueError, match=r"shape .* and its prior's log_prob \(5,\)"):
            Target(prior, bad).log_density(y)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_must_be_a_temperature(beta):
    """Beta <= 0 has no meaning in prior exp(r / beta)."""
    with pytest.raises(ValueError, match="beta is a temperature"):
        tilt(ndist.Normal(), lambda y: y, beta=beta)


def test_product_needs_a_factor():
    """A product of nothing is a mistake."""
    with pytest.raises(ValueError, match="at least one factor"):
        product(ndist.Normal())


def test_indicator_on_three_libraries():
    """0 and -inf, of the same library as the mask."""
    mask = np.array([True, False])
    for xp in (np, jnp, torch):
        out = indicator(xp.asarray(mask))
        assert isinstance(out, type(xp.asarray(mask)))
        np.testing.assert_array_equal(np.asarray(out), [0.0, -math.inf])
