"""Score functions where the support moves with what is differentiated: refused, by derivative."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints, transforms

from infer_align import divergences, f_dpg, tilt
from infer_align.estimators import maximum_likelihood
from infer_align.jax import fit, mixture, policy_gradient, target
from infer_align.jax import programs as P
from infer_align.jax._support import refuse_moving_support
from infer_align.targets import demonstrations

KEY = jax.random.key(0)
T = 0.8
HALF = jnp.array([0.5, 0.5])
POINT = dist.Normal(0.0, 1.0)


def affine(base, loc, scale, **domain):
    return dist.TransformedDistribution(base, transforms.AffineTransform(loc, scale, **domain))


MOVING = {
    "Uniform": lambda t: dist.Uniform(0.0, t),
    "Uniform, vectors": lambda t: dist.Uniform(jnp.stack([t, 0 * t]), 2.0).to_event(1),
    "Uniform, expanded": lambda t: dist.Uniform(-t, 1.0).expand([3]).to_event(1),
    "Pareto": lambda t: dist.Pareto(t, 3.0),
    "LogUniform": lambda t: dist.LogUniform(t, 2.0),
    "Levy": lambda t: dist.Levy(t, 1.0),
    "LeftTruncatedDistribution": lambda t: dist.TruncatedNormal(0.0, 1.0, low=t),
    "LeftTruncatedDistribution, Cauchy": lambda t: dist.TruncatedCauchy(0.0, 1.0, low=t),
    "RightTruncatedDistribution": lambda t: dist.TruncatedNormal(0.0, 1.0, high=t),
    "TwoSidedTruncatedDistribution": lambda t: dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=t),
    "LeftTruncatedGamma": lambda t: dist.LeftTruncatedGamma(dist.Gamma(2.0, 1.0), t),
    "RightTruncatedGamma": lambda t: dist.RightTruncatedGamma(dist.Gamma(2.0, 1.0), t),
    "TwoSidedTruncatedGamma": lambda t: dist.TwoSidedTruncatedGamma(
        dist.Gamma(2.0, 1.0), 0.1, 1.0 + t
    ),
    "LowerTruncatedPowerLaw": lambda t: dist.LowerTruncatedPowerLaw(-2.0, t),
    "DoublyTruncatedPowerLaw": lambda t: dist.DoublyTruncatedPowerLaw(-2.0, t, 3.0),
    "DiscreteUniform": lambda t: dist.DiscreteUniform(0, 3.0 + t),
    "BinomialProbs": lambda t: dist.BinomialProbs(0.5, 3.0 + t),
    "BinomialLogits": lambda t: dist.BinomialLogits(0.5, 3.0 + t),
    "BetaBinomial": lambda t: dist.BetaBinomial(1.0, 2.0, 3.0 + t),
    "Delta": lambda t: dist.Delta(t),
    "GaussianCopula": lambda t: dist.GaussianCopula(
        dist.Uniform(jnp.zeros(2), t), correlation_matrix=jnp.eye(2)
    ),
    "MixtureGeneral": lambda t: dist.MixtureGeneral(
        dist.Categorical(HALF), [POINT, dist.Uniform(0.0, t)], support=constraints.real
    ),
    "MixtureSameFamily": lambda t: dist.MixtureSameFamily(
        dist.Categorical(HALF), affine(dist.Exponential(jnp.ones(2)), t, 1.0)
    ),
    "TransformedDistribution, location": lambda t: affine(dist.Exponential(1.0), t, 1.0),
    "TransformedDistribution, location of a mean": lambda t: affine(
        dist.Gamma(2.0, 1.0), t, 1.0, domain=constraints.positive
    ),
    "TransformedDistribution, scale": lambda t: affine(dist.Beta(1.0, 2.0), 0.0, t),
    "TransformedDistribution, of a sigmoid": lambda t: dist.TransformedDistribution(
        POINT, [transforms.SigmoidTransform(), transforms.AffineTransform(0.0, t)]
    ),
    "TransformedDistribution, of vectors": lambda t: dist.TransformedDistribution(
        dist.Uniform(jnp.zeros(2), 1.0).to_event(1),
        transforms.LowerCholeskyAffine(jnp.zeros(2), t * jnp.eye(2)),
    ),
    "TransformedDistribution, of a simplex": lambda t: affine(dist.Dirichlet(jnp.ones(3)), 0.0, t),
    "FoldedDistribution": lambda t: dist.FoldedDistribution(dist.Uniform(-t, 2 * t)),
    "TruncatedPolyaGamma": lambda t: affine(dist.TruncatedPolyaGamma(), t, 1.0),
    "ExpandedDistribution": lambda t: affine(dist.Exponential(1.0), t, 1.0).expand([2]),
    "Independent": lambda t: affine(dist.Exponential(1.0), t, jnp.ones(2)).to_event(1),
}
FIXED = {
    "Uniform": lambda t: dist.Uniform(0.0, jax.lax.stop_gradient(t)),
    "Pareto": lambda t: dist.Pareto(1.0, t),
    "LeftTruncatedDistribution": lambda t: dist.TruncatedNormal(t, 1.0, low=0.0),
    "RightTruncatedDistribution": lambda t: dist.TruncatedNormal(t, 1.0, high=0.0),
    "TwoSidedTruncatedDistribution": lambda t: dist.TruncatedNormal(
        t, t, low=jnp.zeros(()), high=1.0
    ),
    "LeftTruncatedGamma": lambda t: dist.LeftTruncatedGamma(dist.Gamma(2.0, t), 1.0),
    "LowerTruncatedPowerLaw": lambda t: dist.LowerTruncatedPowerLaw(-1.0 - t, 1.0),
    "DoublyTruncatedPowerLaw": lambda t: dist.DoublyTruncatedPowerLaw(-1.0 - t, 1.0, 3.0),
    "Levy": lambda t: dist.Levy(0.0, t),
    "BinomialProbs": lambda t: dist.BinomialProbs(t, 3),
    "BinomialLogits": lambda t: dist.BinomialLogits(t, 3),
    "BetaBinomial": lambda t: dist.BetaBinomial(t, 2.0, 3),
    "CategoricalProbs": lambda t: dist.CategoricalProbs(jnp.stack([t, 1 - t])),
    "CategoricalLogits": lambda t: dist.CategoricalLogits(jnp.stack([t, 1 - t])),
    "MultinomialProbs": lambda t: dist.MultinomialProbs(jnp.stack([t, 1 - t]), 3),
    "MultinomialLogits": lambda t: dist.MultinomialLogits(jnp.stack([t, 1 - t]), 3),
    "DirichletMultinomial": lambda t: dist.DirichletMultinomial(jnp.stack([t, t]), 3),
    "OrderedLogistic": lambda t: dist.OrderedLogistic(t, jnp.array([-1.0, 1.0])),
    "ZeroInflatedProbs": lambda t: dist.ZeroInflatedProbs(dist.Poisson(t), 0.5),
    "ZeroInflatedLogits": lambda t: dist.ZeroInflatedLogits(dist.Poisson(t), 0.5),
    "HurdleProbs": lambda t: dist.HurdleProbs(dist.Poisson(t), 0.5),
    "HurdleLogits": lambda t: dist.HurdleLogits(dist.Poisson(t), 0.5),
    "SineSkewed": lambda t: dist.SineSkewed(
        dist.VonMises(jnp.stack([t, t]), 1.0).to_event(1), 0.1 * HALF
    ),
    "ZeroSumNormal": lambda t: dist.ZeroSumNormal(t, (3,)),
    "GaussianCopula": lambda t: dist.GaussianCopula(
        dist.Normal(t, jnp.ones(2)), correlation_matrix=jnp.eye(2)
    ),
    "MixtureGeneral": lambda t: dist.MixtureGeneral(
        dist.Categorical(HALF), [POINT, dist.Normal(t, 1.0)]
    ),
    "MixtureSameFamily": lambda t: dist.MixtureSameFamily(
        dist.Categorical(HALF), dist.Normal(jnp.stack([t, -t]), 1.0)
    ),
    "TransformedDistribution, scale of a half-line": lambda t: affine(dist.Gamma(t, t), 0.0, t),
    "TransformedDistribution, scale, with its domain": lambda t: affine(
        dist.Exponential(1.0), 0.0, t, domain=constraints.positive
    ),
    "TransformedDistribution, of a line": lambda t: affine(POINT, t, t),
    "TransformedDistribution, to an interval": lambda t: dist.TransformedDistribution(
        dist.Normal(t, 1.0), [transforms.SigmoidTransform(), transforms.AffineTransform(1.0, 2.0)]
    ),
    "TransformedDistribution, to a simplex": lambda t: dist.TransformedDistribution(
        dist.Normal(jnp.stack([t, t]), 1.0).to_event(1), transforms.StickBreakingTransform()
    ),
    "FoldedDistribution": lambda t: dist.FoldedDistribution(dist.Normal(t, 1.0)),
    "LogNormal": lambda t: dist.LogNormal(t, t),
    "InverseGamma": lambda t: dist.InverseGamma(t, t),
    "Kumaraswamy": lambda t: dist.Kumaraswamy(t, t),
    "RelaxedBernoulli": lambda t: dist.RelaxedBernoulli(0.5, logits=t),
    "TruncatedPolyaGamma": lambda t: dist.TruncatedPolyaGamma(),
    "ExpandedDistribution": lambda t: dist.Gamma(t, 1.0).expand([2]),
    "Independent": lambda t: dist.Gamma(t, jnp.ones(2)).to_event(1),
}
# Censored observations, a base's own, what needs another library to draw, or abstract.
OTHERS = {
    "GaussianCopulaBeta",
    "Distribution", "MaskedDistribution", "EulerMaruyama", "LeftCensoredDistribution",
    "RightCensoredDistribution", "IntervalCensoredDistribution", "SineBivariateVonMises",
}  # fmt: skip
SCORES = [P.score, P.score_loo(2), P.score_running(), P.score_baseline(0.5)]


def slope(make, estimator=P.score, at=T):
    """The derivative of E[Σ x], traced and not run."""
    loss = P.expectation(lambda t: jnp.sum(numpyro.sample("x", make(t)) * 1.0), {"x": estimator})
    return jax.eval_shape(jax.grad(loss, argnums=1), KEY, at)


def derivative_of_log_prob(make):
    """Where NumPyro has no draws at numbers of this kind."""
    x = jnp.ones(jax.eval_shape(make, T).event_shape)
    f = lambda t: jnp.sum(refuse_moving_support(make(t).log_prob(x), make(t), "site 'x'"))
    return jax.eval_shape(jax.grad(f), T)


def test_the_sweep_has_every_distribution_whose_support_depends_on_its_parameters():
    def depends(name):
        one = getattr(dist, name)
        if not (inspect.isclass(one) and issubclass(one, dist.Distribution)):
            return False
        return not isinstance(inspect.getattr_static(one, "support"), constraints.Constraint) or (
            isinstance(inspect.getattr_static(one, "support"), property)
        )

    swept = {name.partition(",")[0] for name in [*MOVING, *FIXED]}
    assert {name for name in dist.__all__ if depends(name)} <= swept | OTHERS


@pytest.mark.parametrize("name", MOVING)
def test_a_score_function_is_refused_where_the_support_moves(name):
    whole = {"DiscreteUniform", "BinomialProbs", "BinomialLogits", "BetaBinomial"}
    with pytest.raises(ValueError, match=r"site 'x'.*bounds move.*use reparam"):
        derivative_of_log_prob(MOVING[name]) if name in whole else slope(MOVING[name])


@pytest.mark.parametrize("name", FIXED)
def test_constant_bounds_are_accepted_whatever_else_is_learnt(name):
    slope(FIXED[name])


@pytest.mark.parametrize("rule", SCORES, ids=lambda rule: rule.name)
def test_every_score_function_is_refused_and_reparam_is_right(rule):
    with pytest.raises(ValueError, match=rf"site 'x' with the estimator {rule.name[:9]}"):
        slope(MOVING["Uniform"], rule)


def test_reparam_has_the_whole_derivative_where_the_support_moves():
    loss = P.expectation(lambda t: numpyro.sample("x", dist.Uniform(0.0, t)), {"x": P.reparam})
    slopes = jax.vmap(jax.grad(loss, argnums=1), (0, None))(jax.random.split(KEY, 4000), T)
    assert abs(float(slopes.mean()) - 0.5) < 5 * float(slopes.std()) / 4000**0.5  # E = t/2


def test_a_value_and_other_derivatives_are_not_refused():
    loss = P.expectation(lambda t, s: s * numpyro.sample("x", dist.Uniform(0.0, t)), {"x": P.score})
    assert 0 < float(loss(KEY, T, 1.0)) < T
    value = jax.grad(loss, argnums=2)(KEY, T, 1.0)
    assert 0 < float(value) < T
    for inside in (jax.grad(loss, argnums=(1, 2)), jax.grad(jax.jit(loss), argnums=1)):
        with pytest.raises(ValueError, match="bounds move"):
            inside(KEY, T, 1.0)


def test_bounds_that_move_are_found_in_repetitions_and_in_parameters_of_programs():
    def repeated(t):
        return jnp.sum(P.particles(3, lambda: numpyro.sample("x", dist.Uniform(0.0, t))))

    with pytest.raises(ValueError, match="site 'x' with the estimator score"):
        jax.grad(P.expectation(repeated, {"x": P.score}), argnums=1)(KEY, T)

    def learnt():
        t = numpyro.param("t", T, constraint=constraints.positive)
        return numpyro.sample("x", dist.Uniform(0.0, t))

    with pytest.raises(ValueError, match="site 'x' with the estimator score"):
        next(P.fit(KEY, P.expectation(learnt, {"x": P.score})))


def test_score_is_right_where_bounds_are_constants():
    law = lambda t: dist.Pareto(1.0, 2.0 + t)
    loss = P.expectation(lambda t: jnp.log(numpyro.sample("x", law(t))), {"x": P.score})
    slopes = jax.vmap(jax.grad(loss, argnums=1), (0, None))(jax.random.split(KEY, 10_000), T)
    error = 5 * float(slopes.std()) / 100
    assert abs(float(slopes.mean()) + 1 / (2 + T) ** 2) < error  # E[log x] = 1/α


def model():
    z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=0.3)


def dream():
    z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0))


def wide(t):
    def program():
        z = numpyro.sample("z", dist.Uniform(0.0, t))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=0.3)

    return program


def guide(law):
    return lambda t: lambda *_: numpyro.sample("z", law(t))


O = P.objectives
OF_GUIDE = {
    "wake_proposal": lambda q, t: O.wake_proposal(model, q(t), n=2),
    "forward_kl": lambda q, t: O.forward_kl(model, q(t), n=2),
    "jeffreys": lambda q, t: O.jeffreys(model, q(t), n=2),
    "vargrad": lambda q, t: O.vargrad(model, q(t), n=2),
    "sleep": lambda q, t: O.sleep(dream, q(t), ("x",)),
}


@pytest.mark.parametrize("name", OF_GUIDE)
def test_objectives_by_the_score_of_a_guide_refuse_a_support_that_moves(name):
    objective = lambda law: P.expectation(lambda t: OF_GUIDE[name](guide(law), t))
    with pytest.raises(ValueError, match=r"site 'z' of .* bounds move"):
        jax.eval_shape(jax.grad(objective(MOVING["Uniform"]), argnums=1), KEY, T)
    jax.eval_shape(jax.grad(objective(lambda t: dist.Beta(t, 1.0)), argnums=1), KEY, T)


def test_the_wake_phase_of_a_model_refuses_a_prior_that_moves():
    fixed = lambda: numpyro.sample("z", dist.Beta(1.5, 1.0))
    objective = P.expectation(lambda t: O.wake_model(wide(t), fixed, n=2))
    with pytest.raises(ValueError, match="site 'z' of wake_model"):
        jax.eval_shape(jax.grad(objective, argnums=1), KEY, T)
    # What is learnt of the guide does not enter that objective.
    other = P.expectation(lambda t: O.wake_model(model, guide(MOVING["Uniform"])(t), n=2))
    jax.eval_shape(jax.grad(other, argnums=1), KEY, T)


def test_a_marginal_refuses_bounds_that_move_at_draws_of_its_proposal():
    def mixed(t):
        u = numpyro.sample("u", dist.Uniform(0.0, t))
        numpyro.sample("z", dist.Normal(u, 1.0))

    propose = lambda kept, t: numpyro.sample("u", dist.Beta(1.5, 1.0))
    summed = P.marginal(mixed, ["z"], propose)
    loss = P.expectation(lambda t: P.density(summed, {"z": 0.3}, t))
    with pytest.raises(ValueError, match="site 'u' of marginal"):
        jax.eval_shape(jax.grad(loss, argnums=1), KEY, T)
    kept = P.marginal(mixed, ["z"], lambda kept, t: numpyro.sample("u", dist.Uniform(0.0, T)))
    jax.eval_shape(P.expectation(lambda t: P.density(kept, {"z": 0.3}, t)), KEY, T)


PRIOR = dist.Uniform(0.0, 2.0)
TARGET = tilt(PRIOR, lambda y: y, beta=1.0)
POLICIES = {
    "a distribution": lambda t: dist.Uniform(0.0, t),
    "a transformed one": lambda t: affine(dist.Beta(1.0, 2.0), 0.0, t),
    "a mixture": lambda t: mixture([PRIOR, dist.Uniform(0.0, t)], [1.0, 1.0]),
}


@pytest.mark.parametrize("name", POLICIES)
def test_fit_refuses_a_policy_whose_support_moves_before_it_draws(name):
    with pytest.raises(ValueError, match=r"the policy.*bounds move.*reparam"):
        fit(KEY, POLICIES[name], jnp.array(T), TARGET, f_dpg(divergences.jensen_shannon))
    with pytest.raises(ValueError, match=r"the policy.*bounds move.*reparam"):
        policy_gradient(POLICIES[name], jnp.array(T), jnp.array([0.1, 0.2]), jnp.ones(2))


def test_fit_to_samples_refuses_it_too():
    data = demonstrations(jnp.array([0.1, 0.2, 0.5]))
    with pytest.raises(ValueError, match=r"the policy.*bounds move"):
        fit(KEY, POLICIES["a distribution"], jnp.array(T), data, maximum_likelihood())


def test_fit_sees_what_moves_inside_a_program_but_not_what_earlier_sites_say():
    def program(t, high):
        def run():
            first = numpyro.sample("a", dist.Normal(t, 1.0))
            numpyro.sample("b", dist.Uniform(0.0, high(t, jnp.abs(first))))

        return target(run).prior

    outcomes = {"a": jnp.array([0.5, -0.5]), "b": jnp.array([0.1, 0.2])}
    c = jnp.array([1.0, 2.0])
    bound_by_a = lambda t: program(t, lambda t, a: a + 1)
    # d/dt of Σ c log N(a; t, 1) is Σ c (a − t)
    expected = 1.0 * (0.5 - T) + 2.0 * (-0.5 - T)
    np.testing.assert_allclose(policy_gradient(bound_by_a, T, outcomes, c), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"the policy at site 'b'.*bounds move"):
        policy_gradient(lambda t: program(t, lambda t, a: t), T, outcomes, c)


def test_a_bounded_policy_with_constant_bounds_is_fitted():
    policy = lambda t: dist.TruncatedNormal(t, 0.5, low=0.0, high=2.0)
    step = next(fit(KEY, policy, jnp.array(T), TARGET, f_dpg(divergences.reverse_kl), n=16))
    assert step.metrics["grad_norm"] > 0


def test_a_folded_site_is_drawn_and_scored():
    law = lambda t: dist.FoldedDistribution(dist.Normal(t, 1.0))
    loss = P.expectation(lambda t: numpyro.sample("x", law(t)) ** 2, {"x": P.score})
    slopes = jax.vmap(jax.grad(loss, argnums=1), (0, None))(jax.random.split(KEY, 10_000), T)
    error = 5 * float(slopes.std()) / 100
    assert abs(float(slopes.mean()) - 2 * T) < error  # E[x²] = 1 + t², folded too
