"""Five moments of models/gdc_moments.py, solved exactly; moments in NumPyro programs."""

import importlib.util
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import infer_align as ia
from infer_align import WeightedSample, exact
from infer_align.targets import unconstrained

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gdc", ROOT / "models" / "gdc_moments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fit(model: ModuleType) -> ia.targets.MomentFit:
    return exact.match_moments(ia.jax.target(model.program()))


def test_five_moments_are_solved_to_1e_8(model: ModuleType, fit: ia.targets.MomentFit) -> None:
    """Means, multipliers and the law, against sums over the listed outcomes."""
    space = model.space()
    solution = space.solve(fit.target)
    for name, values in model.features(space.outcomes).items():
        assert abs(float(space.expectation(values, solution.log_prob)) - model.MEANS[name]) < 1e-8
        want = model.REFERENCE[f"multiplier_{name}"]["value"]
        assert fit.multipliers[name] == pytest.approx(want, abs=1e-8)
    assert float(fit.kl_to_base) == pytest.approx(float(solution.kl_to_prior), abs=1e-10)
    assert list(fit.multipliers) == list(model.MEANS)
    assert set(fit.standard_errors.values()) == {0.0}
    assert fit.reliable


def test_five_moments_on_a_sample(model: ModuleType, fit: ia.targets.MomentFit) -> None:
    """λ within five standard errors of the exact ones, and so the true moments."""
    target = ia.jax.target(model.program())
    space = model.space()
    log_prior = np.asarray(space.log_prob(target.given()))
    rng, n = np.random.default_rng(0), 8000
    index = rng.choice(len(space), n, p=np.exp(log_prior))
    sample = WeightedSample(jnp.asarray(space.outcomes)[index], np.zeros(n), np.zeros(n))
    rough = ia.solve_moments(target, sample)
    assert rough.reliable
    log_target = space.log_target(rough.target)
    features = model.features(space.outcomes)
    for name, value in rough.multipliers.items():
        assert abs(value - fit.multipliers[name]) < 5 * rough.multiplier_errors[name]
        miss = float(space.expectation(features[name], log_target)) - model.MEANS[name]
        assert abs(miss) < 5 * rough.standard_errors[name]
        assert abs(rough.achieved[name] - model.MEANS[name]) < 1e-9


def test_a_program_with_contexts_under_jit_and_grad() -> None:
    """Values are outputs of vmap; the mean is over contexts; gradients pass."""
    table = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])

    def program(x):
        y = numpyro.sample("y", dist.CategoricalProbs(table[x]))
        numpyro.factor("reward", 0.3 * y)
        ia.moment("two", y == 2, 0.4)
        ia.moment("mean", y, 1.1)

    target, x = ia.jax.target(program), jnp.arange(2)
    fit = exact.match_moments(target, x)
    y = jnp.broadcast_to(jnp.arange(3)[:, None], (3, 2))
    p = jax.nn.softmax(jax.jit(fit.target.log_density)(y, x), axis=0)
    np.testing.assert_allclose(float(p[2].mean()), 0.4, atol=1e-9)
    np.testing.assert_allclose(float((p * y).sum(0).mean()), 1.1, atol=1e-9)
    with pytest.raises(ValueError, match="declares the moments two, mean"):
        jax.jit(target.log_density)(y, x)
    base = unconstrained(target).log_density(y, x)
    np.testing.assert_allclose(base, jnp.log(table.T) + 0.3 * y)
    known = ia.moment_match(target, multipliers=fit.multipliers)
    np.testing.assert_allclose(known.log_density(y, x), fit.target.log_density(y, x))
    more = exact.match_moments(ia.moment_match(target, {"zero": (lambda y, x: y == 0, 0.3)}), x)
    assert list(more.achieved) == ["two", "mean", "zero"]


def test_what_a_program_may_not_declare() -> None:
    """A feature of several numbers, a name twice, a mean that is traced; nothing at all."""

    def of(declare):
        def program():
            y = numpyro.sample("y", dist.Categorical(jnp.ones(3) / 3).expand([2]).to_event(1))
            declare(y)

        return ia.jax.target(program)

    with pytest.raises(ValueError, match=r"'a' in program 'program' has shape \(2,\)"):
        exact.match_moments(of(lambda y: ia.moment("a", y == 1, 0.5)))
    with pytest.raises(ValueError, match="declared twice"):
        exact.match_moments(of(lambda y: [ia.moment("a", y[0] == 1, 0.5) for _ in range(2)]))
    with pytest.raises(ValueError, match="must be a known number"):
        exact.match_moments(of(lambda y: ia.moment("a", y[0] == 1, y[1] / 3)))
    with pytest.raises(ValueError, match="declares no moments"):
        exact.match_moments(of(lambda y: None))


def test_a_space_that_cannot_be_listed_names_the_sample() -> None:
    """The remedy is solve_moments."""
    tokens = dist.Categorical(jnp.ones(3) / 3).expand([40]).to_event(1)
    target = ia.moment_match(tokens, {"first": (lambda y: y[..., 0] == 1, 0.5)})
    with pytest.raises(ValueError, match=r"too many to list.*solve_moments"):
        exact.match_moments(target)
