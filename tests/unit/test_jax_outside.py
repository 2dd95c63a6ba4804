"""Values from elsewhere have density 0 outside the support of a NumPyro distribution."""

import math
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints, transforms

from infer_align import Space, _supports, divergences, f_dpg, samplers, tilt
from infer_align.estimators import none
from infer_align.jax import BestOfN, fit, mixture, policy_gradient, source, target
from infer_align.jax import programs as P

KEY = jax.random.key(0)
PROBS = jnp.array([0.2, 0.3, 0.5])


@pytest.fixture(autouse=True)
def no_validation() -> Iterator[None]:
    """NumPyro's formulas go on."""
    before = dist.Distribution._validate_args
    numpyro.enable_validation(False)
    yield
    numpyro.enable_validation(before)


def affine(base, loc, scale):
    return dist.TransformedDistribution(base, transforms.AffineTransform(loc, scale))


REAL = jnp.array([-1.5, -0.5, 0.25, 0.75, 1.5, 3.5])
WHOLE = jnp.array([-1, 0, 1, 2, 3, 7])
ORDERED = jnp.array([[0.5, 1.0, 3.0], [1.0, 0.5, 3.0]])
CASES = {
    "half normal": (dist.HalfNormal, REAL, REAL > 0),
    "log normal": (lambda s: dist.LogNormal(0.0, s), REAL, REAL > 0),
    "gamma": (lambda a: dist.Gamma(a, 2.0), REAL, REAL > 0),
    "beta": (lambda a: dist.Beta(a, 2.0), REAL, (REAL > 0) & (REAL < 1)),
    "uniform": (lambda a: dist.Uniform(-a, 2.0), REAL, (REAL > -1) & (REAL < 2)),
    "moved": (lambda a: affine(dist.Uniform(0.0, 1.0), a, 2.0), REAL, (REAL > 1) & (REAL < 3)),
    "scaled": (lambda a: affine(dist.HalfNormal(a), 0.0, -1.0), REAL, REAL < 0),
    "truncated": (lambda a: dist.TruncatedNormal(0.0, 1.0, high=a), REAL, REAL < 1),
    "folded": (lambda a: dist.FoldedDistribution(dist.Normal(0.0, a)), REAL, REAL > 0),
    "mixture": (
        lambda a: dist.MixtureSameFamily(
            dist.Categorical(PROBS), dist.Gamma(a * jnp.array([1.0, 2.0, 3.0]), 1.0)
        ),
        REAL, REAL > 0,
    ),
    "event": (lambda a: dist.HalfNormal(a).expand([6]).to_event(1), REAL, False),
    "moved event": (
        lambda a: affine(dist.Uniform(0.0, a).expand([3]).to_event(1), 0.0, 2.0),
        ORDERED / 1.6, jnp.array([True, True]),
    ),
    "ordered": (
        lambda a: dist.TransformedDistribution(
            dist.Normal(jnp.zeros(3), a), transforms.OrderedTransform()
        ),
        ORDERED, jnp.array([True, False]),
    ),
    "masked": (
        lambda a: dist.HalfNormal(a).mask(REAL != -1.5), REAL, (REAL > 0) | (REAL == -1.5)
    ),
    "categorical": (lambda a: dist.Categorical(a * PROBS), WHOLE, (WHOLE >= 0) & (WHOLE < 3)),
    "poisson": (dist.Poisson, WHOLE, WHOLE >= 0),
    "bernoulli": (lambda a: dist.Bernoulli(a / 3), WHOLE, (WHOLE == 0) | (WHOLE == 1)),
    "binomial": (lambda a: dist.Binomial(3, a / 3), WHOLE, (WHOLE >= 0) & (WHOLE < 4)),
    "batch": (
        lambda a: dist.Uniform(jnp.array([0.0, 1.0]), 3.0 * a), REAL[:, None],
        (REAL[:, None] > jnp.array([0.0, 1.0])) & (REAL[:, None] < 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_density_is_0_outside_and_its_derivatives_are_finite(case: str) -> None:
    make, value, inside = CASES[case]
    floats = jnp.issubdtype(value.dtype, jnp.floating)

    def total(a, value):
        log_prob = _supports.log_prob(make(a), value)
        return jnp.where(jnp.isfinite(log_prob), log_prob, 0.0).sum(), log_prob

    slope = jax.jit(jax.grad(total, argnums=(0, 1) if floats else (0,), has_aux=True))
    slopes, found = slope(1.0, value)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Out-of-support values")
        plain = np.asarray(make(1.0).log_prob(value))
    np.testing.assert_allclose(found, np.where(inside, plain, -np.inf), rtol=1e-5)
    assert all(np.isfinite(x).all() for x in slopes)


@pytest.mark.parametrize("case", ["log normal", "masked", "categorical"])
def test_derivatives_are_finite_with_validation_too(case: str) -> None:
    numpyro.enable_validation()
    test_the_density_is_0_outside_and_its_derivatives_are_finite(case)


class Even(constraints.ParameterFreeConstraint):
    """A constraint of a user's, which knows no feasible value."""

    is_discrete = True

    def __call__(self, x):
        return x % 2 == 0


class Evens(dist.Distribution):
    support = Even()

    def log_prob(self, value):
        return jnp.full(jnp.shape(value), -1.0)


def test_a_constraint_of_a_users_own() -> None:
    found = _supports.log_prob(Evens(), jnp.array([1, 2, 3]))
    np.testing.assert_array_equal(found, [-np.inf, -1.0, -np.inf])


def prior():
    y = numpyro.sample("y", dist.HalfNormal(1.0))
    numpyro.factor("reward", -y)


LOG_Z = math.log(2 * math.exp(0.5) * 0.5 * math.erfc(1 / math.sqrt(2)))
MEAN = math.sqrt(2 / math.pi) / math.exp(LOG_Z) - 1
"""Of y under exp(−y²/2 − y), y > 0: by parts, E = φ-term/Z − 1."""
DECLARED = {
    "program": lambda: target(prior),
    "prior": lambda: tilt(dist.HalfNormal(1.0), lambda y: -y, beta=1.0),
}
PROPOSALS = {
    "normal": lambda: dist.Normal(0.0, 1.5),
    "mixture": lambda: mixture([dist.Normal(0.0, 1.5), dist.HalfNormal(1.0)], [1.0, 1.0]),
}


@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_a_wider_proposal_estimates_the_closed_form(declared: str, proposal: str) -> None:
    drawn = source(KEY, DECLARED[declared](), proposal=PROPOSALS[proposal]()).draw(40_000)
    w = np.exp(drawn.log_target - drawn.log_proposal)
    y = np.asarray(drawn.outcomes)
    assert (y < 0).any()
    assert not w[y < 0].any()
    assert abs(w.mean() - math.exp(LOG_Z)) < 5 * w.std() / 200
    moment = w * (y - MEAN)
    assert abs(moment.mean()) < 5 * moment.std() / 200
    # The mixture's density, where a component has none, is that of the other.
    at = PROPOSALS["mixture"]().log_prob(jnp.array([-1.0]))
    assert at[0] == pytest.approx(float(math.log(0.5) + dist.Normal(0.0, 1.5).log_prob(-1.0)))


def test_a_proposal_is_scored_at_outcomes_of_others() -> None:
    law = source(KEY, target(prior), proposal=dist.Uniform(0.0, 2.0))
    found = law.log_proposal(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(found, [-math.log(2), -np.inf])
    assert np.isneginf(law.log_target(jnp.array([-1.0]))).all()


def test_a_policy_has_weight_and_gradient_0_at_outcomes_that_it_never_draws() -> None:
    """Three letters proposed, of which the policy has two: exact by the listed outcomes."""

    def policy(logits):
        return dist.Categorical(logits=logits)

    full = dist.Categorical(probs=PROBS)
    given = (KEY, policy, jnp.zeros(2), tilt(full, lambda y: 0.0 * y, beta=1.0))
    options = {"n": 50, "steps": 1, "proposal": lambda _: full}
    step = next(iter(fit(*given, f_dpg(divergences.jensen_shannon, baseline=none()), **options)))
    with pytest.raises(ValueError, match="probability 0 to outcomes of the target"):
        next(iter(fit(*given, f_dpg(divergences.forward_kl, baseline=none()), **options)))
    np.testing.assert_array_equal(np.isneginf(step.weights.policy), step.outcomes == 2)
    slope = policy_gradient(policy, jnp.zeros(2), jnp.array([0, 2, -1]), jnp.array([1.0, 3.0, 5.0]))
    np.testing.assert_allclose(slope, [0.5, -0.5], rtol=1e-6)
    shape = policy_gradient(
        lambda a: dist.Gamma(a, 1.0), 2.0, jnp.array([-1.0, 1.0]), jnp.array([3.0, 1.0])
    )
    assert shape == pytest.approx(float(-jax.scipy.special.digamma(2.0)), rel=1e-5)


def test_a_listed_space_wider_than_a_prior() -> None:
    space = Space(jnp.arange(5))
    found = space.log_prob(dist.Categorical(probs=PROBS))
    np.testing.assert_allclose(jnp.exp(found), [0.2, 0.3, 0.5, 0, 0], rtol=1e-6)


def test_the_best_of_n_has_the_support_of_its_base() -> None:
    best = BestOfN(dist.Categorical(probs=PROBS), lambda y: 1.0 * y, 4)
    assert np.isneginf(best.log_prob(jnp.array([-1, 3]))).all()


def test_the_density_of_a_program_at_the_sites_of_another() -> None:
    def model(scale):
        z = numpyro.sample("z", dist.HalfNormal(scale))
        numpyro.sample("x", dist.Exponential(1.0).mask(z < 2), obs=z)

    at = lambda z, scale=1.0: P.density(model, {"z": jnp.array(z)}, scale)
    assert at(-1.0) == -jnp.inf
    assert at(1.0) == pytest.approx(math.log(2) - 0.5 * math.log(2 * math.pi) - 0.5 - 1.0)
    assert jax.grad(at, argnums=1)(-1.0, 1.0) == 0
    coin = lambda: numpyro.sample("z", dist.Bernoulli(0.3))
    assert P.density(coin, {"z": jnp.array(2)}) == -jnp.inf
    seen = lambda: numpyro.sample("x", dist.Bernoulli(0.3), obs=jnp.array(2))
    assert P.simulate(seen)[1] == -jnp.inf


def test_resampling_a_wide_proposal_gives_outcomes_of_the_target() -> None:
    law = source(KEY, target(prior), proposal=dist.Normal(0.0, 1.5))
    kept = samplers.importance(law, n=2_000)
    assert np.isfinite(kept.log_weights).any()
    assert np.isneginf(np.asarray(kept.log_weights)[np.asarray(kept.outcomes) < 0]).all()
